//! Versions of installed programs and the requirements that clients state.
//!
//! The grammar is semver's (the `semver` crate); what is ours is that a person may leave out the parts that are zero.

use std::fmt;

/// The longest version or requirement, in bytes.
pub const VERSION_MAX: usize = 64;

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no version: {reason}")]
pub struct VersionError {
    /// The text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a text is no requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no version requirement: {reason}")]
pub struct RequirementError {
    /// The text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

fn shortened(text: &str) -> String {
    text.chars().take(VERSION_MAX).collect()
}

/// Parses a version; missing minor and patch numbers are zero, so `15` reads as `15.0.0` and `1.4-rc.1` as `1.4.0-rc.1`.
///
/// # Errors
/// Says what semver finds wrong, or that the text is longer than [`VERSION_MAX`].
pub fn parse_version(text: &str) -> Result<semver::Version, VersionError> {
    let error = |reason: String| VersionError { text: shortened(text), reason };
    if text.len() > VERSION_MAX {
        return Err(error(format!("longer than {VERSION_MAX} bytes")));
    }
    let numbers_end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(numbers_end);
    let full = match numbers.matches('.').count() {
        0 => format!("{numbers}.0.0{rest}"),
        1 => format!("{numbers}.0{rest}"),
        _ => text.to_owned(),
    };
    semver::Version::parse(&full).map_err(|e| error(e.to_string()))
}

/// What version a client asks for: semver's requirements (`^1.4`, `>=7, <8`, `*`), as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    parsed: semver::VersionReq,
    /// A requirement that names one whole version means exactly that version, pre-release and all.
    exact: Option<semver::Version>,
    text: Box<str>,
}

impl Requirement {
    /// The requirement that every version satisfies, pre-releases too.
    #[must_use]
    pub fn any() -> Self {
        Self { parsed: semver::VersionReq::STAR, exact: None, text: "*".into() }
    }

    /// Parses a requirement. A whole version, `7.0.15`, means that version alone; `7` and `7.0` mean `^7` and `^7.0`, as
    /// Cargo reads them; the empty text is an error, `*` is any version.
    ///
    /// # Errors
    /// Says what semver finds wrong, or that the text is longer than [`VERSION_MAX`].
    pub fn parse(text: &str) -> Result<Self, RequirementError> {
        let error = |reason: String| RequirementError { text: shortened(text), reason };
        if text.len() > VERSION_MAX {
            return Err(error(format!("longer than {VERSION_MAX} bytes")));
        }
        match text.trim() {
            "" => return Err(error("it is empty (`*` is any version)".to_owned())),
            "*" => return Ok(Self { parsed: semver::VersionReq::STAR, exact: None, text: text.into() }),
            _ => {}
        }
        let parsed = semver::VersionReq::parse(text).map_err(|e| error(e.to_string()))?;
        Ok(Self { parsed, exact: semver::Version::parse(text.trim()).ok(), text: text.into() })
    }

    /// Whether the version satisfies the requirement.
    #[must_use]
    pub fn matches(&self, version: &semver::Version) -> bool {
        match &self.exact {
            Some(exact) => exact.cmp_precedence(version).is_eq(),
            None => self.parsed == semver::VersionReq::STAR || self.parsed.matches(version),
        }
    }

    /// The requirement as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl std::str::FromStr for Requirement {
    type Err = RequirementError;
    fn from_str(text: &str) -> Result<Self, RequirementError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_version_is_filled_with_zeros() {
        for (short, full) in [("15", "15.0.0"), ("1.4", "1.4.0"), ("1.4-rc.1", "1.4.0-rc.1"), ("7.0.15", "7.0.15")] {
            assert_eq!(parse_version(short).map(|v| v.to_string()), Ok(full.to_owned()));
        }
        for bad in ["", "a", "1.2.3.4", "01", "1..2", &"1".repeat(65)] {
            assert!(parse_version(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_requirement_matches_as_people_expect() {
        let matches = |requirement: &str, version: &str| {
            Requirement::parse(requirement).expect("valid").matches(&parse_version(version).expect("valid"))
        };
        assert!(matches("^7", "7.0.15"));
        assert!(matches("7", "7.4.0"));
        assert!(!matches("7", "8.0.0"));
        assert!(matches(">=6, <8", "7.0.0"));
        assert!(matches("7.0.15", "7.0.15"));
        assert!(!matches("7.0.15", "7.0.16"));
        assert!(matches("*", "1.0.0-rc.1"));
        assert!(!matches("^1", "1.0.0-rc.1"));
        assert!(matches("1.0.0-rc.1", "1.0.0-rc.1"));
        assert_eq!(Requirement::parse("*"), Ok(Requirement::any()));
        assert!(Requirement::parse(" * ").expect("valid").matches(&parse_version("0.1.0-alpha").expect("valid")));
        assert!(Requirement::any().matches(&parse_version("0.1.0-alpha").expect("valid")));
    }

    #[test]
    fn an_empty_requirement_says_what_to_write() {
        let error = Requirement::parse("").map_err(|e| e.to_string());
        assert_eq!(error, Err("`` is no version requirement: it is empty (`*` is any version)".to_owned()));
    }
}
