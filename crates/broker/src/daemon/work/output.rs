//! What a daemon writes to: a stream of the journal, or a file that the broker makes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use broker_proto::Refusal;

use super::failed::failed;
use super::launch::Order;
use crate::journald::stream::{self, Stream};
use crate::process::cgroup::Leaf;
use crate::process::log_file::{self, LogFile};
use crate::process::log_place::LogPlace;
use crate::process::spare::Spare;
use crate::process::start_record;
use crate::services;

/// Where it is to write.
pub(super) enum Planned {
    /// Open.
    Stream(OwnedFd, Stream),
    /// Not there yet.
    File(PathBuf),
}

impl Planned {
    /// The journal where it is to and can, else this file.
    pub(super) fn of(order: &Order, cgroup: Option<&Leaf>, file: PathBuf) -> Self {
        if order.definition.log == services::Log::Journal {
            let unit = cgroup.and_then(Leaf::unit).unwrap_or_default();
            let (identifier, backend) = (order.key.service.as_str(), order.key.to_string());
            match stream::begin(stream::PLACE.as_ref(), identifier, unit, &backend, order.start.generation) {
                Ok((socket, stream)) => return Self::Stream(socket, stream),
                Err(error) => tracing::warn!(
                    backend = %order.key, generation = order.start.generation, %error,
                    "the journal takes no stream, so the daemon writes to a file"
                ),
            }
        }
        Self::File(file)
    }

    /// Makes the file.
    pub(super) fn open(self, order: &Order, spare: Option<Spare>) -> Result<Output, Box<Refusal>> {
        match self {
            Self::Stream(socket, stream) => {
                Ok(Output { descriptor: Arc::new(socket), place: LogPlace::Journal(stream), file: None })
            }
            Self::File(path) => {
                let made = log_file::create(path, start_record::aside(&order.record), spare);
                let (descriptor, file) = made.map_err(|error| failed(error.to_string(), &error))?;
                let place = LogPlace::File(file.path().to_owned());
                Ok(Output { descriptor: Arc::new(descriptor.into()), place, file: Some(file) })
            }
        }
    }
}

/// What it writes to.
pub(super) struct Output {
    pub(super) descriptor: Arc<OwnedFd>,
    pub(super) place: LogPlace,
    file: Option<LogFile>,
}

impl Output {
    /// Puts the file where it belongs.
    pub(super) fn settle(&mut self) -> Result<(), Box<Refusal>> {
        let settled = self.file.as_mut().map_or(Ok(()), LogFile::settle);
        settled.map_err(|error| failed(error.to_string(), &error))
    }

    /// Removes the file of a start that came to nothing.
    pub(super) fn remove(&self) {
        self.file.iter().for_each(LogFile::remove);
    }

    /// The broker's own end, where it is a stream.
    pub(super) fn into_stream(self) -> Option<Arc<OwnedFd>> {
        self.file.is_none().then_some(self.descriptor)
    }
}
