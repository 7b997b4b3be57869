//! The options: of the command line, the environment and a file, in this order.
//!
//! There is one list of them, clap's. What a file has, and neither of the others, is put into the
//! command line, which is then read anew: so a file has every option, in the same words.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use toml::de::{DeTable, DeValue};

use crate::Cli;
use crate::args::operation::Operation;
use crate::args::{cache, serve};

/// The options, and where they come from.
pub(crate) struct Config {
    pub(crate) what: What,
    file: Option<PathBuf>,
    /// The lines of the file's options, one for each of their values.
    lines: HashMap<String, Vec<usize>>,
    /// The options that are from the environment.
    environment: Vec<String>,
    /// The beginning of the variables' names.
    prefix: &'static str,
}

/// The contents that are served.
pub(crate) enum What {
    Files(Box<serve::Args>),
    Cache(Box<cache::Args>),
}

/// Why there are no options.
pub(crate) enum Wrong {
    /// The command line is wrong, or asks for help.
    Usage(clap::Error),
    /// The file cannot be read, or is wrong.
    File(anyhow::Error),
}

/// An option of the file: its name, a value, and its line.
struct Entry {
    key: String,
    value: String,
    line: usize,
}

impl Config {
    /// Reads the options of a command line, of the environment, and of the file that they name.
    pub(crate) fn read(line: &[OsString]) -> Result<Self, Wrong> {
        let given = matches(line.to_vec()).map_err(|e| of_environment(e, line))?;
        let prefix = prefix(line);
        unknown_variable(prefix, &given).map_err(Wrong::File)?;
        let environment = given
            .ids()
            .filter(|id| given.value_source(id.as_str()) == Some(ValueSource::EnvVariable))
            .map(|id| id.as_str().replace('_', "-"))
            .collect();
        let file = given.get_one::<PathBuf>("config").cloned();
        let (given, entries) = match &file {
            Some(file) => with_file(line, &given, file).map_err(Wrong::File)?,
            None => (given, Vec::new()),
        };
        let what = if prefix == cache::ENVIRONMENT {
            cache::Args::from_arg_matches(&given).map(|args| What::Cache(Box::new(args)))
        } else {
            serve::Args::from_arg_matches(&given).map(|args| What::Files(Box::new(args)))
        };
        let what = what.map_err(Wrong::Usage)?;
        let mut lines: HashMap<_, Vec<_>> = HashMap::new();
        for entry in entries {
            lines.entry(entry.key).or_default().push(entry.line);
        }
        Ok(Config { what, file, lines, environment, prefix })
    }

    /// The options of how it is run.
    pub(crate) fn operation(&self) -> &Operation {
        match &self.what {
            What::Files(args) => &args.operation,
            What::Cache(args) => &args.operation,
        }
    }

    /// Returns the place where the value number `index` of an option was given, as its giver knows it.
    pub(crate) fn place(&self, key: &str, index: usize) -> String {
        let line = self.lines.get(key).and_then(|lines| lines.get(index));
        match (&self.file, line) {
            (Some(file), Some(line)) => format!("{}:{line}: {key}", file.display()),
            _ if self.environment.iter().any(|at| at == key) => variable(self.prefix, key),
            _ if key == "dir" => "the directory".into(),
            _ => format!("--{key}"),
        }
    }
}

/// Returns the name of an option's environment variable.
fn variable(prefix: &str, key: &str) -> String {
    format!("{prefix}{}", key.replace('-', "_").to_uppercase())
}

/// Returns the beginning of the names of a command's variables.
fn prefix(line: &[OsString]) -> &'static str {
    if line.get(1).is_some_and(|name| name == "cache") {
        cache::ENVIRONMENT
    } else {
        serve::ENVIRONMENT
    }
}

/// Reads a command line; the result is of its command.
fn matches(line: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    let mut all = Cli::command().try_get_matches_from(line)?;
    Ok(all.remove_subcommand().map(|(_, matches)| matches).unwrap_or_default())
}

/// Reads the command line with what the file has and nobody before it.
fn with_file(
    line: &[OsString],
    given: &ArgMatches,
    file: &Path,
) -> anyhow::Result<(ArgMatches, Vec<Entry>)> {
    let name = file.display();
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the configuration {name}"))?;
    let mut entries = entries(&text).map_err(|(at, why)| anyhow!("{name}:{at}: {why}"))?;
    entries.retain(|entry| {
        let id = entry.key.replace('-', "_");
        let known = given.try_contains_id(&id).is_ok();
        let before = known.then(|| given.value_source(&id)).flatten();
        !matches!(before, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    });
    // Behind the command's name.
    let (before, behind) = line.split_at(line.len().min(2));
    let options = entries.iter().map(|Entry { key, value, .. }| match (&**key, &**value) {
        ("dir", value) => value.into(),
        ("redirect-https", "true") => "--redirect-https".into(),
        (key, value) => format!("--{key}={value}").into(),
    });
    let line = before.iter().cloned().chain(options).chain(behind.iter().cloned()).collect();
    match matches(line) {
        Ok(given) => Ok((given, entries)),
        Err(e) => bail!("{}", told(&e, file, &entries)),
    }
}

/// Returns clap's message, with the line of what it complains about.
fn told(error: &clap::Error, file: &Path, entries: &[Entry]) -> String {
    let (key, text) = (key_of(error), text_of(error));
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => Some(value),
        _ => None,
    };
    let of_key = || entries.iter().filter(|entry| entry.key == key);
    let entry = of_key().find(|entry| Some(&entry.value) == value).or_else(|| of_key().next());
    match entry {
        Some(Entry { key, line, .. }) => format!("{}:{line}: {key}: {text}", file.display()),
        None => format!("{}: {text}", file.display()),
    }
}

/// Returns the option that clap complains about, if it names one.
fn key_of(error: &clap::Error) -> String {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => name.clone(),
        Some(ContextValue::Strings(names)) => names.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let key = named.trim_start_matches("--").split(['=', ' ', '[']).next().unwrap_or_default();
    key.to_owned()
}

/// Returns clap's message in one line.
fn text_of(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more").next().unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").map(str::to_owned).unwrap_or(text)
}

/// Returns clap's error; with the variable's name, if it is about a value of the environment.
fn of_environment(error: clap::Error, line: &[OsString]) -> Wrong {
    let key = key_of(&error);
    let option = format!("--{key}");
    let given = line.iter().any(|it| it.to_string_lossy().split('=').next() == Some(&*option));
    let variable = variable(prefix(line), &key);
    if error.use_stderr() && !given && std::env::var_os(&variable).is_some() {
        return Wrong::File(anyhow!("{variable}: {}", text_of(&error)));
    }
    Wrong::Usage(error)
}

/// Refuses a variable that is meant to be an option, and is none.
fn unknown_variable(prefix: &str, given: &ArgMatches) -> anyhow::Result<()> {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let Some(option) = name.strip_prefix(prefix) else { continue };
        let id = option.to_lowercase();
        let known =
            id != "check" && variable(prefix, &id) == name && given.try_contains_id(&id).is_ok();
        ensure!(known, "{name}: there is no such option; --help lists them");
    }
    Ok(())
}

/// Reads the options of a file, in their order; or says the line, and why not.
fn entries(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text)
        .map_err(|e| (line(e.span().map_or(0, |span| span.start)), e.message().to_owned()))?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let at = line(key.span().start);
        let key = &**key.get_ref();
        if matches!(key, "config" | "check" | "help") {
            return Err((at, format!("{key}: give --{key} on the command line")));
        }
        let mut add = |value: &DeValue<'_>, at: usize, pattern: Option<&str>| {
            let value = scalar(value).map_err(|why| (at, format!("{key}: {why}")))?;
            let value = pattern.map_or(value.clone(), |pattern| format!("{pattern}={value}"));
            entries.push(Entry { key: key.to_owned(), value, line: at });
            Ok(())
        };
        match value.get_ref() {
            DeValue::Array(array) => {
                for value in array {
                    add(value.get_ref(), line(value.span().start), None)?;
                }
            }
            // "*.js" = "max-age=3600", or several of them.
            DeValue::Table(rules) if matches!(key, "cache-control" | "header") => {
                let mut rules: Vec<_> = rules.iter().collect();
                rules.sort_by_key(|(pattern, _)| pattern.span().start);
                for (pattern, value) in rules {
                    let (at, pattern) = (line(pattern.span().start), Some(&**pattern.get_ref()));
                    match value.get_ref() {
                        DeValue::Array(array) => {
                            for value in array {
                                add(value.get_ref(), line(value.span().start), pattern)?;
                            }
                        }
                        value => add(value, at, pattern)?,
                    }
                }
            }
            value => add(value, at, None)?,
        }
    }
    Ok(entries)
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    Ok(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Boolean(yes) => yes.to_string(),
        other => {
            return Err(format!(
                "a value of the type {} has no meaning here: give a \"text\", a number, true or \
                 false, or a list of them: [\"one\", \"two\"]",
                other.type_str()
            ));
        }
    })
}

/// Refuses what contradicts itself.
pub(crate) fn agree(config: &Config) -> anyhow::Result<()> {
    let args = config.operation();
    match &config.what {
        What::Files(files) => ensure!(
            files.dir.is_some(),
            "which directory? Give it on the command line, or dir = \"...\" in a file"
        ),
        What::Cache(cache) => ensure!(
            !cache.origin.is_empty(),
            "which origin? Give --origin, such as --origin http://127.0.0.1:3000, or origin = \"...\" in \
             a file"
        ),
    }
    let tls = args.tls_cert.is_some();
    let (have, miss) = if tls { ("tls-cert", "tls-key") } else { ("tls-key", "tls-cert") };
    ensure!(
        tls == args.tls_key.is_some(),
        "{}: a certificate and its private key belong together: give --{miss}, too",
        config.place(have, 0)
    );
    ensure!(
        args.redirect_https.is_none() || tls,
        "{}: there is no HTTPS to redirect to: give --tls-cert and --tls-key",
        config.place("redirect-https", 0)
    );
    Ok(())
}
