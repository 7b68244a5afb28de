//! Where things lie when nobody says otherwise.
//!
//! Owns the default paths: those of a system service for root, those of the XDG base directory specification for an
//! ordinary user. A function of the user and the environment; touches no file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folder of the broker in each directory of the system or the user.
const FOLDER: &str = "broker";
const SOCKET: &str = "broker.sock";
const CONFIG: &str = "broker.toml";
const SERVICES: &str = "services.d";

const SYSTEM_RUNTIME: &str = "/run";
const SYSTEM_STATE: &str = "/var/lib";
const SYSTEM_CONFIG: &str = "/etc";

/// What the defaults depend on.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'s> {
    /// The user that the broker runs as.
    pub(crate) uid: u32,
    /// Looks an environment variable up.
    pub(crate) variable: &'s dyn Fn(&str) -> Option<OsString>,
}

/// A path that has no default, for want of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no default place for {what}: {missing}; give {option}")]
pub(crate) struct NoDefault {
    what: &'static str,
    missing: &'static str,
    option: &'static str,
}

impl Surroundings<'static> {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        Self { uid: nix::unistd::Uid::effective().as_raw(), variable: &|name| std::env::var_os(name) }
    }
}

impl Surroundings<'_> {
    /// `/run/broker/broker.sock`, or `$XDG_RUNTIME_DIR/broker/broker.sock`.
    pub(crate) fn socket(&self) -> Result<PathBuf, NoDefault> {
        let runtime = self.directory(SYSTEM_RUNTIME, "XDG_RUNTIME_DIR", None).ok_or(NoDefault {
            what: "the socket",
            missing: "XDG_RUNTIME_DIR is not set to an absolute path",
            option: "--socket PATH",
        })?;
        Ok(runtime.join(FOLDER).join(SOCKET))
    }

    /// `/var/lib/broker`, or `$XDG_STATE_HOME/broker`, where `~/.local/state` stands for the variable.
    pub(crate) fn state_dir(&self) -> Result<PathBuf, NoDefault> {
        let state = self.directory(SYSTEM_STATE, "XDG_STATE_HOME", Some(".local/state")).ok_or(NoDefault {
            what: "the state",
            missing: "neither XDG_STATE_HOME nor HOME is set to an absolute path",
            option: "--state-dir DIR",
        })?;
        Ok(state.join(FOLDER))
    }

    /// `/etc/broker/broker.toml`, or `$XDG_CONFIG_HOME/broker/broker.toml`, where `~/.config` stands for the variable.
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        Some(self.config_directory()?.join(CONFIG))
    }

    /// `services.d` beside the configuration.
    pub(crate) fn services_dir(&self) -> Option<PathBuf> {
        Some(self.config_directory()?.join(SERVICES))
    }

    fn config_directory(&self) -> Option<PathBuf> {
        Some(self.directory(SYSTEM_CONFIG, "XDG_CONFIG_HOME", Some(".config"))?.join(FOLDER))
    }

    /// The system's directory for root. For others that of the variable, or else the one below their home.
    fn directory(&self, system: &str, variable: &str, below_home: Option<&str>) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(Path::new(system).to_owned());
        }
        self.path(variable).or_else(|| Some(self.path("HOME")?.join(below_home?)))
    }

    /// The path in a variable. The specification has relative ones ignored, and empty ones count as unset.
    fn path(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uid: u32, environment: &[(&str, &str)], expect: &str) {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|&(_, value)| OsString::from(value));
        let surroundings = Surroundings { uid, variable: &variable };
        let shown = |path: Option<PathBuf>| path.map_or("none".to_owned(), |path| path.display().to_string());
        let all = [
            surroundings.socket().map_or_else(|error| error.to_string(), |path| shown(Some(path))),
            surroundings.state_dir().map_or_else(|error| error.to_string(), |path| shown(Some(path))),
            shown(surroundings.config_file()),
            shown(surroundings.services_dir()),
        ];
        assert_eq!(all.join("\n"), expect);
    }

    #[test]
    fn root_has_the_systems_places_whatever_the_environment() {
        check(
            0,
            &[("HOME", "/root"), ("XDG_CONFIG_HOME", "/x")],
            "/run/broker/broker.sock\n/var/lib/broker\n/etc/broker/broker.toml\n/etc/broker/services.d",
        );
    }

    #[test]
    fn a_user_has_the_xdg_places() {
        let environment = [
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_CONFIG_HOME", "/c"),
            ("HOME", "/home/a"),
        ];
        let expect = "/run/user/1000/broker/broker.sock\n/s/broker\n/c/broker/broker.toml\n/c/broker/services.d";
        check(1000, &environment, expect);
    }

    #[test]
    fn home_stands_for_what_is_unset_empty_or_relative() {
        let environment = [
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("XDG_STATE_HOME", ""),
            ("XDG_CONFIG_HOME", "relative"),
            ("HOME", "/home/a"),
        ];
        check(
            1000,
            &environment,
            "/run/user/1000/broker/broker.sock\n/home/a/.local/state/broker\n\
             /home/a/.config/broker/broker.toml\n/home/a/.config/broker/services.d",
        );
    }

    #[test]
    fn without_an_environment_the_answer_names_the_option_to_give() {
        check(
            1000,
            &[],
            "no default place for the socket: XDG_RUNTIME_DIR is not set to an absolute path; give --socket PATH\n\
             no default place for the state: neither XDG_STATE_HOME nor HOME is set to an absolute path; \
             give --state-dir DIR\nnone\nnone",
        );
    }
}
