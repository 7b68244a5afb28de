//! Parsers of single values, as people write them in a file.
//!
//! Each takes a TOML value and returns what it means, or a text that goes on after the name of the key: what is wrong,
//! and what to write. None knows which key it reads.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use broker_proto::{Requirement, parse_version};
use bytesize::ByteSize;
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;
use nix::sys::signal::Signal;
use nix::unistd::{Group, User};
use toml::de::DeValue;

use super::problem::{listed, quoted, suggestion};
use super::template::Template;

pub(crate) use crate::net::endpoint::SOCKET_PATH_MAX;

/// The longest duration. Deadlines are 64-bit nanoseconds, which this keeps far from their end.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// `expected a string, found the integer `10``, with the quotes that a scalar lacks.
pub(crate) fn expected(what: &str, found: &DeValue<'_>) -> String {
    let (kind, scalar) = match found {
        DeValue::String(text) => ("the string", Some(quoted(text))),
        DeValue::Integer(number) => ("the number", Some(quoted(&number.to_string()))),
        DeValue::Float(number) => ("the number", Some(quoted(&number.to_string()))),
        DeValue::Boolean(value) => ("the boolean", Some(quoted(&value.to_string()))),
        DeValue::Datetime(value) => ("the date", Some(quoted(&value.to_string()))),
        DeValue::Array(_) => ("an array", None),
        DeValue::Table(_) => ("a table", None),
    };
    match scalar {
        Some(scalar) if what == "a string" => {
            format!("expected a string, found {kind} {scalar}: write it in quotes, \"{}\"", scalar.trim_matches('`'))
        }
        Some(scalar) => format!("expected {what}, found {kind} {scalar}"),
        None => format!("expected {what}, found {kind}"),
    }
}

/// A string that can be handed to the kernel: it has no NUL.
pub(crate) fn text(value: &DeValue<'_>) -> Result<String, String> {
    let text = value.as_str().ok_or_else(|| expected("a string", value))?;
    match text.contains('\0') {
        true => Err(format!("{} has a NUL character, which no argument, path or variable can have", quoted(text))),
        false => Ok(text.to_owned()),
    }
}

/// `true` or `false`.
pub(crate) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| match value.as_str() {
        Some(word @ ("true" | "false")) => format!("`{word}` is a string: write it without quotes"),
        _ => expected("true or false", value),
    })
}

/// A whole number in a range.
pub(crate) fn number<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        value
            .as_integer()
            .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| expected(&format!("a whole number from {} to {}", range.start(), range.end()), value))
    }
}

/// One of several words.
pub(crate) fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let word = text(value)?;
        words.iter().find(|(known, _)| *known == word).map(|&(_, meaning)| meaning).ok_or_else(|| {
            let meant = suggestion(&word, words.iter().map(|&(known, _)| known)).unwrap_or_default();
            let known = listed(words.iter().map(|(known, _)| format!("`{known}`")), "or");
            format!("expected {known}, found {}{meant}", quoted(&word))
        })
    }
}

/// A duration as people write it: `250ms`, `1m 30s`, `2 hours`, `1d` (24 hours).
pub(crate) fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    const FORM: &str = "write durations as \"250ms\", \"10s\" or \"1m 30s\"";
    let text = match value {
        DeValue::Integer(number) => {
            return Err(format!("`{number}` has no unit: write \"{number}s\" or \"{number}ms\""));
        }
        DeValue::Float(number) => return Err(format!("`{number}` has no unit: write \"{number}s\"")),
        DeValue::String(text) => text.trim(),
        _ => return Err(format!("{}: {FORM}", expected("a duration", value))),
    };
    if text == "never" {
        return Err(format!("`never` is not possible here: {FORM}"));
    }
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(format!("{} has no unit: write \"{text}s\" or \"{text}ms\"", quoted(text)));
    }
    let span = SpanParser::new().parse_span(text);
    let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    let Ok(duration) = duration else { return Err(format!("{} is no duration: {FORM}", quoted(text))) };
    match Duration::try_from(duration) {
        Err(_) => Err(format!("{} is negative: {FORM}", quoted(text))),
        Ok(duration) if duration > DURATION_MAX => {
            Err(format!("{} is longer than the limit of 10 years", quoted(text)))
        }
        Ok(duration) => Ok(duration),
    }
}

/// A duration longer than zero.
pub(crate) fn positive_duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A duration, or `never`.
pub(crate) fn duration_or_never(value: &DeValue<'_>) -> Result<Option<Duration>, String> {
    match value.as_str().map(str::trim) {
        Some("never") => Ok(None),
        _ => duration(value).map(Some).map_err(|error| format!("{error}, or \"never\"")),
    }
}

/// A duration longer than zero, or `never`.
pub(crate) fn positive_duration_or_never(value: &DeValue<'_>) -> Result<Option<Duration>, String> {
    match duration_or_never(value)? {
        Some(Duration::ZERO) => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// A number of bytes, greater than zero: `16MiB`, `500kB`, or the bare number.
pub(crate) fn size(value: &DeValue<'_>) -> Result<u64, String> {
    const FORM: &str = "write sizes as \"16MiB\", \"500kB\" or a number of bytes";
    let bytes = match value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(text) => text.trim().parse::<ByteSize>().ok().map(|size| size.as_u64()),
        _ => return Err(format!("{}: {FORM}", expected("a size", value))),
    };
    let found = match value.as_str() {
        Some(text) => quoted(text),
        None => value.as_integer().map(|number| format!("`{number}`")).unwrap_or_default(),
    };
    match bytes {
        None => Err(format!("{found} is no size: {FORM}")),
        Some(0) => Err("must be more than zero bytes".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

/// An octal umask in quotes: `"0077"`.
pub(crate) fn umask(value: &DeValue<'_>) -> Result<u32, String> {
    let text = match value {
        DeValue::String(text) => text,
        _ => return Err(format!("{}: write it in octal and in quotes, \"0077\"", expected("a umask", value))),
    };
    let octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    octal
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten()
        .filter(|&mask| mask <= 0o777)
        .ok_or_else(|| format!("{} is no umask: write it in octal, from \"0000\" to \"0777\"", quoted(text)))
}

/// A signal by name: `SIGTERM` or `TERM`.
pub(crate) fn signal(value: &DeValue<'_>) -> Result<Signal, String> {
    let name = text(value).map_err(|_| format!("{}: write its name, \"SIGTERM\"", expected("a signal", value)))?;
    let full = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
    full.parse().map_err(|_| {
        let known = Signal::iterator().map(Signal::as_str);
        let meant = suggestion(&full, known).unwrap_or_else(|| ": write its name, \"SIGTERM\"".to_owned());
        format!("there is no signal {}{meant}", quoted(&name))
    })
}

/// A version, and as it was written.
pub(crate) fn version(value: &DeValue<'_>) -> Result<(semver::Version, String), String> {
    let text = text(value)?;
    let version = parse_version(&text).map_err(|error| error.to_string())?;
    Ok((version, text))
}

/// A version, or a requirement such as `<7.2`.
pub(crate) fn requirement(value: &DeValue<'_>) -> Result<Requirement, String> {
    Requirement::parse(&text(value)?).map_err(|error| error.to_string())
}

/// An absolute path, taken as it stands.
pub(crate) fn absolute_path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = text(value)?;
    match path.starts_with('/') {
        true => Ok(PathBuf::from(path)),
        false => Err(format!("{} is not an absolute path{}", quoted(&path), home_hint(&path))),
    }
}

/// Says that nobody expands `~`, if that is what the writer hopes for.
pub(crate) fn home_hint(path: &str) -> &'static str {
    if path.starts_with('~') { " (`~` is not expanded)" } else { "" }
}

/// An absolute path that fits the address of a Unix socket.
pub(crate) fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = absolute_path(value)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(format!("the path is {length} bytes long, a socket's path has at most {SOCKET_PATH_MAX}"));
    }
    Ok(path)
}

/// A text with placeholders.
pub(crate) fn template(value: &DeValue<'_>) -> Result<Template, String> {
    Template::parse(&text(value)?)
}

/// A user by name or number.
pub(crate) fn user(value: &DeValue<'_>) -> Result<u32, String> {
    id(value, "user", |name| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw())))
}

/// A group by name or number.
pub(crate) fn group(value: &DeValue<'_>) -> Result<u32, String> {
    id(value, "group", |name| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())))
}

fn id(value: &DeValue<'_>, what: &str, find: fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, String> {
    // The last number means "no change" to the kernel and belongs to nobody.
    const ID_MAX: u32 = u32::MAX - 1;
    let number = match value {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().ok()
        }
        _ => {
            let name = text(value).map_err(|_| expected(&format!("a {what}'s name or number"), value))?;
            return match find(&name) {
                Ok(Some(id)) => Ok(id),
                Ok(None) => Err(format!("there is no {what} {} on this machine", quoted(&name))),
                Err(error) => Err(format!("cannot look the {what} {} up: {}", quoted(&name), error.desc())),
            };
        }
    };
    number.filter(|&id| id <= ID_MAX).ok_or_else(|| expected(&format!("a {what}'s number up to {ID_MAX}"), value))
}
