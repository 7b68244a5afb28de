//! Where a start's stdout and stderr go: a file of its own, or the journal of systemd.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::FileId;
use crate::journald::stream::Stream;

/// The place that is named where another would be the path of a file.
pub(crate) const JOURNAL: &str = "journal";

/// Where a start writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum LogPlace {
    File(PathBuf),
    Journal(Stream),
}

impl LogPlace {
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Journal(_) => None,
        }
    }

    /// What the descriptor of one who writes there is, as long as it is so.
    pub(crate) fn identity(&self) -> Option<FileId> {
        match self {
            Self::File(path) => fs::metadata(path).ok().as_ref().map(FileId::from),
            Self::Journal(stream) => Some(stream.socket),
        }
    }
}

/// The file's path, or `journal`.
impl fmt::Display for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Journal(_) => f.write_str(JOURNAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_down_as_its_path() {
        let round = |place: &LogPlace| {
            let text = serde_json::to_string(place).unwrap();
            assert_eq!(serde_json::from_str::<LogPlace>(&text).unwrap(), *place);
            text
        };
        assert_eq!(round(&LogPlace::File("/l/x.log".into())), "\"/l/x.log\"");
        let socket = FileId { device: 9, inode: 4711, born: None };
        let stream = Stream { identifier: "x".into(), generation: 3, first_line: "starting".into(), writer: 7, socket };
        insta::assert_snapshot!(round(&LogPlace::Journal(stream)), @r#"{"identifier":"x","generation":3,"first_line":"starting","writer":7,"socket":{"device":9,"inode":4711}}"#);
    }
}
