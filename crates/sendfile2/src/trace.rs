//! Events for who listens to traces: those of the crate `tracing`; or, without the feature, none.
//!
//! None while anything is locked: who listens may ask about what is sent.

#[cfg(feature = "tracing")]
pub(crate) use tracing::{debug, error, trace, warn};

/// An event that nobody is told of. Nothing of it is evaluated, but what it names counts as used.
#[cfg(not(feature = "tracing"))]
macro_rules! nothing {
    ($format:literal $($arguments:tt)*) => {{
        if false {
            let _ = format_args!($format $($arguments)*);
        }
    }};
    ($name:ident = $(?)? $(%)? $value:expr, $($rest:tt)*) => {{
        if false {
            let _ = &$value;
        }
        $crate::trace::nothing!($($rest)*);
    }};
    ($(?)? $(%)? $name:ident, $($rest:tt)*) => {
        $crate::trace::nothing!($name = $name, $($rest)*)
    };
}

#[cfg(not(feature = "tracing"))]
pub(crate) use {nothing, nothing as debug, nothing as error, nothing as trace, nothing as warn};
