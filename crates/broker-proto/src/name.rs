//! Names of services and instances, and how a person writes a backend's name.
//!
//! Owns the alphabet of names. A value of these types is valid for good: nobody checks it again, and it is safe as a
//! component of a path.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes. With the directories around it a name still fits a file name (255 bytes) many times.
pub const NAME_MAX: usize = 64;

/// The instance of a client that names none.
pub const DEFAULT_INSTANCE: &str = "default";

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// `service name`, `instance name` or `process id`.
        what: &'static str,
    },
    /// The text is longer than [`NAME_MAX`] bytes.
    #[error("{what} is {length} bytes long, the limit is {NAME_MAX}: `{start}…`")]
    TooLong {
        /// `service name`, `instance name` or `process id`.
        what: &'static str,
        /// Length of the text in bytes.
        length: usize,
        /// The first characters of the text.
        start: String,
    },
    /// The text has a character that names may not have, at that place.
    #[error(
        "{what} `{text}` has {character:?}: names are lower-case letters, digits, `.`, `_` and `-`, and begin with a \
         letter or a digit"
    )]
    Character {
        /// `service name`, `instance name` or `process id`.
        what: &'static str,
        /// The whole text.
        text: String,
        /// The first character that is not allowed where it stands.
        character: char,
    },
}

/// Checks `[a-z0-9][a-z0-9._-]{0,63}`.
fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong { what, length: text.len(), start: text.chars().take(24).collect() });
    }
    let is_first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_wrong = |(at, byte)| !(is_first(byte) || at > 0 && matches!(byte, b'.' | b'_' | b'-'));
    match text.bytes().enumerate().position(is_wrong) {
        None => Ok(()),
        // What comes before is ASCII.
        Some(at) => {
            let character = text[at..].chars().next().unwrap_or_default();
            Err(NameError::Character { what, text: text.to_owned(), character })
        }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses `[a-z0-9][a-z0-9._-]{0,63}`.
            ///
            /// # Errors
            /// Says what is wrong with the text: empty, too long, or which character does not belong.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check($what, text).map(|()| Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// Equal, ordered and hashed as its text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    };
}

name_type!(
    /// The name of a service: a program that somebody defined in a service file.
    ServiceName,
    "service name"
);
name_type!(
    /// The name of an instance, which separates worlds: a tenant, a CI pool, a workspace.
    InstanceName,
    "instance name"
);

name_type!(
    /// The id of a durable process: whoever registers the same one again means the same process.
    ProcessId,
    "process id"
);

impl Default for InstanceName {
    fn default() -> Self {
        Self(DEFAULT_INSTANCE.into())
    }
}

/// What a person types to name backends: `SERVICE[@VERSION][/INSTANCE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The service.
    pub service: ServiceName,
    /// A version or a requirement such as `^7`; `None` is any version.
    pub requirement: Option<crate::Requirement>,
    /// The instance, if one was named.
    pub instance: Option<InstanceName>,
}

/// Why a text names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The service or the instance is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the `@` is no version requirement.
    #[error(transparent)]
    Requirement(#[from] crate::RequirementError),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (rest, instance) = match text.rsplit_once('/') {
            Some((rest, instance)) => (rest, Some(InstanceName::parse(instance)?)),
            None => (text, None),
        };
        let (service, requirement) = match rest.split_once('@') {
            Some((service, requirement)) => (service, Some(crate::Requirement::parse(requirement)?)),
            None => (rest, None),
        };
        Ok(Self { service: ServiceName::parse(service)?, requirement, instance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_alphabet() {
        for good in ["a", "0", "redis", "rust-analyzer", "a.b_c-d", &"x".repeat(64)] {
            assert_eq!(ServiceName::parse(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", ".", "..", "a/b", "A", "ä", "a b", "a\0", &"x".repeat(65)] {
            assert!(ServiceName::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_name_of_200_characters_is_not_repeated_in_full() {
        let error = ServiceName::parse(&"y".repeat(200)).map_err(|e| e.to_string());
        assert_eq!(
            error,
            Err("service name is 200 bytes long, the limit is 64: `yyyyyyyyyyyyyyyyyyyyyyyy…`".to_owned())
        );
    }

    #[test]
    fn an_address_has_optional_parts() {
        let address: Address = "redis@^7/tenant-a".parse().expect("valid");
        assert_eq!(address.service.as_str(), "redis");
        assert_eq!(address.requirement.map(|r| r.to_string()), Some("^7".to_owned()));
        assert_eq!(address.instance.as_ref().map(InstanceName::as_str), Some("tenant-a"));
        let bare: Address = "redis".parse().expect("valid");
        assert_eq!((bare.requirement, bare.instance), (None, None));
        assert!("redis@".parse::<Address>().is_err());
        assert!("redis/".parse::<Address>().is_err());
        assert!("@7".parse::<Address>().is_err());
    }
}
