//! What a caller asks for.

use std::time::Duration;

use broker_proto::{ClientInfo, DEFAULT_INSTANCE, Delivery, Hello, RequestId, Target};

/// A request for a backend.
///
/// ```
/// use std::time::Duration;
/// use broker_client::Request;
///
/// let request = Request::new("redis").version("^7").instance("tenant-a").deadline(Duration::from_secs(20));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    service: String,
    version_requirement: String,
    instance: String,
    deadline: Option<Duration>,
    delivery: Delivery,
    found_dead: Option<u64>,
}

impl Request {
    /// Any version of the service, in the default instance, for as long as the service's own limits allow.
    ///
    /// A name that is no name is the broker's to refuse (`malformed`).
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            version_requirement: "*".to_owned(),
            instance: DEFAULT_INSTANCE.to_owned(),
            deadline: None,
            delivery: Delivery::Endpoint,
            found_dead: None,
        }
    }

    /// Asks for a version: a semver requirement such as `^7` or `>=7, <8`; a whole version means exactly that one.
    #[must_use]
    pub fn version(mut self, requirement: impl Into<String>) -> Self {
        self.version_requirement = requirement.into();
        self
    }

    /// Asks in another instance than `default`.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// How long the caller will wait. The broker is told and refuses with `start_timeout` when it has passed; a broker
    /// that says nothing at all is given one second more, then the request fails with [`Error::Timeout`].
    ///
    /// [`Error::Timeout`]: crate::Error::Timeout
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Asks for a socket that the broker has connected to the backend. It works from another mount namespace, and needs
    /// the service's consent where this process runs as another user than the broker (`[access] connected`).
    #[must_use]
    pub fn connected(mut self) -> Self {
        self.delivery = Delivery::Connected;
        self
    }

    /// Tells the broker which generation's endpoint was just found dead. [`Held::connect`] does so by itself.
    ///
    /// [`Held::connect`]: crate::Held::connect
    #[must_use]
    pub fn found_dead(mut self, generation: u64) -> Self {
        self.found_dead = Some(generation);
        self
    }

    pub(crate) fn waits_at_most(&self) -> Option<Duration> {
        self.deadline
    }

    pub(crate) fn wants_connected(&self) -> bool {
        self.delivery == Delivery::Connected
    }

    pub(crate) fn into_target(self) -> Target {
        let Self { instance, service, version_requirement, .. } = self;
        Target { instance, service, version_requirement }
    }

    pub(crate) fn describe(&self) -> String {
        format!("the broker's answer for `{}@{}/{}`", self.service, self.version_requirement, self.instance)
    }

    pub(crate) fn hello(&self, request_id: RequestId, client: ClientInfo) -> Hello {
        Hello {
            request_id,
            instance: self.instance.clone(),
            service: self.service.clone(),
            version_requirement: self.version_requirement.clone(),
            client,
            // Counted from when it is sent, which is not yet.
            deadline_ms: None,
            delivery: self.delivery,
            found_dead: self.found_dead,
        }
    }
}
