//! The settings of reconnecting, checked where they are made.

use std::time::Duration;

/// How a session comes back after its connection broke.
///
/// Each lost connection and each dial that fails is one *drop*. After the first the session waits a random part of
/// `initial_backoff`, after each further one a random part of twice as much, up to `max_backoff` (full jitter, so that
/// many clients do not come back in one instant: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture
/// Blog, 2015). After `max_attempts` drops in a row without a healthy session in between it gives up with the last
/// error. A session is healthy once it served a request, or if it lasted longer than `max_backoff`.
///
/// ```
/// use std::time::Duration;
/// use broker_client::ReconnectConfig;
///
/// let config = ReconnectConfig::new(Duration::from_millis(50), Duration::from_secs(2), 10)?;
/// assert_eq!(config.max_attempts(), 10);
/// assert!(ReconnectConfig::new(Duration::ZERO, Duration::from_secs(2), 10).is_err());
/// # Ok::<(), broker_client::InvalidReconnectConfig>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectConfig {
    initial_backoff: Duration,
    max_backoff: Duration,
    max_attempts: u32,
}

/// Why settings of reconnecting make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReconnectConfig {
    /// Without a pause a broker that is down would be dialled without end.
    #[error("initial_backoff is zero")]
    ZeroInitialBackoff,
    /// The same.
    #[error("max_backoff is zero")]
    ZeroMaxBackoff,
    /// No attempt at all is what [`Builder::no_reconnect`](crate::Builder::no_reconnect) says.
    #[error("max_attempts is zero: say no_reconnect() instead")]
    ZeroMaxAttempts,
    /// The delays could only shrink.
    #[error("max_backoff ({max:?}) is less than initial_backoff ({initial:?})")]
    MaxBelowInitial {
        /// `initial_backoff`.
        initial: Duration,
        /// `max_backoff`.
        max: Duration,
    },
}

impl ReconnectConfig {
    /// Settings of one's own.
    ///
    /// # Errors
    /// One of them is zero, or `max_backoff` is less than `initial_backoff`.
    pub fn new(
        initial_backoff: Duration,
        max_backoff: Duration,
        max_attempts: u32,
    ) -> Result<Self, InvalidReconnectConfig> {
        if initial_backoff.is_zero() {
            return Err(InvalidReconnectConfig::ZeroInitialBackoff);
        }
        if max_backoff.is_zero() {
            return Err(InvalidReconnectConfig::ZeroMaxBackoff);
        }
        if max_attempts == 0 {
            return Err(InvalidReconnectConfig::ZeroMaxAttempts);
        }
        if max_backoff < initial_backoff {
            return Err(InvalidReconnectConfig::MaxBelowInitial { initial: initial_backoff, max: max_backoff });
        }
        Ok(Self { initial_backoff, max_backoff, max_attempts })
    }

    /// The longest pause after the first drop; no redial after an announced drain comes sooner.
    #[must_use]
    pub fn initial_backoff(&self) -> Duration {
        self.initial_backoff
    }

    /// The longest pause of all; a session that lasts longer proved healthy by that alone.
    #[must_use]
    pub fn max_backoff(&self) -> Duration {
        self.max_backoff
    }

    /// After how many drops without health the session gives up.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// The longest pause after the drop of that number, from 1.
    pub(super) fn cap(&self, drops: u32) -> Duration {
        let doublings = drops.saturating_sub(1).min(31);
        self.initial_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

impl Default for ReconnectConfig {
    /// 100 milliseconds, 5 seconds, 20 attempts: a broker that is away for half a minute, as for an upgrade, is waited
    /// for.
    fn default() -> Self {
        Self { initial_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), max_attempts: 20 }
    }
}
