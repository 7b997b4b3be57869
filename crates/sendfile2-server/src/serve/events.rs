//! What goes wrong in the cache, told on standard error.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, PoisonError};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::Seldom;

/// Tells the cache's warnings and errors: of each kind at most one a second.
#[derive(Default)]
struct Told(Mutex<HashMap<Identifier, Seldom>>);

/// Begins to tell them.
pub(super) fn tell() {
    // It fails where others listen already.
    let _ = tracing::subscriber::set_global_default(Told::default());
}

impl Subscriber for Told {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.target().starts_with("sendfile2_cache")
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text("sendfile2:".into());
        event.record(&mut text);
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.entry(event.metadata().callsite()).or_default().note(&text.0);
    }

    // There are no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event in one line.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
