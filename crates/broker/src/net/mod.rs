//! Endpoints of backends as the kernel sees them: who listens, who is connected, what may be bound or removed.
//!
//! Clients' sessions with the broker itself are not here. Nothing here blocks, except where a function says so.

pub(crate) mod appearance;
pub(crate) mod endpoint;
pub(crate) mod notify_socket;
pub(crate) mod ownership;
pub(crate) mod service_manager;
pub(crate) mod sock_diag;
