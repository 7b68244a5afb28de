//! An ordinary user of a machine, whose own service manager runs.

use std::path::Path;

use serde_json::Value;

use super::{FAKE_BACKEND, Machine, NOTES};
use crate::command::Output;
use crate::service::Service;
use crate::wait::wait;

/// A user with a home, as after a login.
#[derive(Debug)]
pub struct User<'m> {
    machine: &'m Machine,
    name: String,
    /// The user's number.
    pub uid: u32,
}

impl Machine {
    /// Makes a user and starts the user's service manager.
    ///
    /// # Panics
    /// There is such a user already.
    #[track_caller]
    #[must_use]
    pub fn user(&self, name: &str) -> User<'_> {
        let _ = self.run(&["useradd", "--create-home", "--shell", "/bin/sh", name]).done();
        let uid = self.run(&["id", "--user", name]).done().stdout.trim().parse().expect("a number");
        let user = User { machine: self, name: name.to_owned(), uid };
        self.systemctl(&["start", &user.manager()]);
        user
    }
}

impl User<'_> {
    /// The unit of the system that is this user's service manager.
    #[must_use]
    pub fn manager(&self) -> String {
        format!("user@{}.service", self.uid)
    }

    /// A path in the user's home.
    #[must_use]
    pub fn home(&self, path: &str) -> String {
        format!("/home/{}/{path}", self.name)
    }

    /// Runs a command as the user, in an environment as after a login.
    #[track_caller]
    #[must_use]
    pub fn run(&self, command: &[&str]) -> Output {
        let variable = format!("XDG_RUNTIME_DIR=/run/user/{}", self.uid);
        self.machine.run_as(&self.name, &[&["env", &variable], command].concat())
    }

    /// Runs a script as the user, by the shell, to its first failure.
    #[track_caller]
    #[must_use]
    pub fn shell(&self, script: &str) -> Output {
        self.run(&["sh", "-euc", script])
    }

    /// Runs `systemctl --user`, which must succeed.
    #[track_caller]
    pub fn systemctl(&self, arguments: &[&str]) {
        let _ = self.run(&[&["systemctl", "--user"], arguments].concat()).done();
    }

    /// A property of a unit of the user, as `systemctl show` names it.
    #[track_caller]
    #[must_use]
    pub fn property(&self, unit: &str, property: &str) -> String {
        let show = ["systemctl", "--user", "show", "--value", "--property", property, unit];
        self.run(&show).done().stdout.trim().to_owned()
    }

    /// Waits until a unit of the user is in that state.
    #[track_caller]
    pub fn wait_unit(&self, unit: &str, state: &str) {
        let look = || (self.property(unit, "ActiveState") == state).then_some(());
        wait(look, || format!("{unit} is {state}, not {}", self.property(unit, "ActiveState")));
    }

    /// Writes a service file of the user's broker.
    #[track_caller]
    pub fn service(&self, service: &Service) {
        let name = &service.name;
        let text = service.text(&Path::new(NOTES).join(name), Path::new(FAKE_BACKEND));
        self.machine.write(&self.home(&format!(".config/broker/services.d/{name}.toml")), &text);
        let owner = format!("{0}:{0}", self.name);
        let _ = self.machine.run(&["chown", "--recursive", &owner, &self.home("")]).done();
    }

    /// `brokerctl resolve --json`: the backend.
    #[track_caller]
    #[must_use]
    pub fn resolve(&self, service: &str) -> Value {
        self.run(&["brokerctl", "--json", "resolve", service]).done().json()
    }
}
