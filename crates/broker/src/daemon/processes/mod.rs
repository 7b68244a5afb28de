//! Durable processes: commands that are run to their end under an id, even if the broker dies meanwhile.
//!
//! Here is the driver's side: requests are checked and handed to the keeper, a thread of its own that is there as soon
//! as there is a store; its answers find their sessions. A process is run by its reaper ([`crate::reaper`]), which needs
//! no broker.

mod claims;
mod documents;
mod keeper;
mod keeping;
mod launch;
mod orders;
mod owner;
mod record;
mod records;
mod requests;
mod services;
mod spec;
mod store;
mod waits;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use broker_proto::{AdminRequest, Code, ProcessId, Refusal, RequestId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::json;
use tokio::sync::mpsc::Sender;
use tokio::task::spawn_local;

use self::keeper::{Keeper, Parts};
use self::orders::{Asker, Order};
pub(super) use self::orders::{Happening, News};
use self::records::Records;
use self::services::resolve_work;
use self::spec::{Registration, malformed};
use self::store::{OpenError, Place};
use super::admin::reply;
use super::cgroups::Cgroups;
use super::driver::Driver;
use super::hosted::Task;
use super::session::{Session, SessionId};
use super::work::Report;
use crate::config::{self, Config};
use crate::core::ById;
use crate::core::backend::{RETRY_HINT, Ticket};
use crate::core::millis_up;
use crate::store::{StoreError, chain};

/// Orders that wait to be read. The keeper stores what it is told to run, so its pace is the disk's.
const ORDERS_MAX: usize = 4096;

/// The longest reason of a cancellation, in bytes: it is part of every report about the process.
const REASON_MAX: usize = 4096;

/// How long a broker that ends waits for its keeper.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The driver's hold on the keeper.
pub(super) struct Processes {
    settings: config::Processes,
    is_shared: bool,
    nofile_soft: Option<u64>,
    cgroups: Cgroups,
    reports: Sender<Report>,
    keeper: Option<KeeperHandle>,
    waits: ById<Ticket, Wait>,
    /// How many this broker has in hand.
    live: Arc<AtomicUsize>,
    /// Whether the broker leaves.
    starts_no_more: Arc<AtomicBool>,
    /// The broker is about to end, and the leases are given up.
    has_left: bool,
}

/// How to reach the keeper.
pub(super) struct KeeperHandle {
    orders: SyncSender<Order>,
    wake: Arc<EventFd>,
    /// Closed once the keeper has ended.
    ended: Receiver<()>,
}

/// One who waits for an end.
struct Wait {
    session: SessionId,
    request_id: RequestId,
    /// Ends the wait when its time has passed.
    _over: Option<Task>,
}

impl Processes {
    /// Opens the store, if there is one; it is made by the first process.
    ///
    /// # Errors
    /// A newer broker wrote the store.
    pub(super) fn new(
        config: &Config,
        nofile_soft: Option<u64>,
        cgroups: Cgroups,
        reports: Sender<Report>,
    ) -> Result<Self, StoreError> {
        let mut processes = Self {
            settings: config.processes.clone(),
            is_shared: config.processes.is_shared,
            nofile_soft,
            cgroups,
            reports,
            keeper: None,
            waits: ById::default(),
            live: Arc::default(),
            starts_no_more: Arc::default(),
            has_left: false,
        };
        if processes.has_store() {
            let place = processes.place().map_err(StartError::Facts);
            let records = place.and_then(|place| place.open().map_err(StartError::Open));
            match records {
                Err(StartError::Open(OpenError::Store(error @ StoreError::Newer { .. }))) => return Err(error),
                Err(error) => tracing::error!(error = %chain(&error), "durable processes cannot be run for now"),
                Ok(records) => {
                    if let Err(error) = processes.start(Some(records)) {
                        tracing::error!(error = %chain(&error), "durable processes cannot be run for now");
                    }
                }
            }
        }
        Ok(processes)
    }

    /// Whether there is a store, or is to be one.
    fn has_store(&self) -> bool {
        self.is_shared || store::database(&self.settings.store).exists()
    }

    fn place(&self) -> io::Result<Place> {
        let (me, owner) = owner::me()?;
        Ok(Place { store: self.settings.store.clone(), me, owner, lease: self.settings.lease })
    }

    /// Starts the keeper, which opens the store itself if it is not open yet: nobody else waits for that.
    fn start(&mut self, records: Option<Records>) -> Result<(), StartError> {
        let place = match &records {
            Some(records) => records.place(),
            None => self.place().map_err(StartError::Facts)?,
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)?;
        let wake = Arc::new(wake);
        let (orders, received) = sync_channel(ORDERS_MAX);
        let keeper = Keeper::new(Parts {
            folders: place.folders(),
            records,
            place,
            is_shared: self.is_shared,
            concurrent: self.settings.concurrent,
            nofile_soft: self.nofile_soft,
            cgroups: self.cgroups.clone(),
            reports: self.reports.clone(),
            live_count: Arc::clone(&self.live),
            starts_no_more: Arc::clone(&self.starts_no_more),
        });
        let woken = Arc::clone(&wake);
        let (end, ended) = channel();
        std::thread::Builder::new().name("processes".to_owned()).spawn(move || {
            keeper.run(&received, &woken);
            drop::<std::sync::mpsc::Sender<()>>(end);
        })?;
        self.keeper = Some(KeeperHandle { orders, wake, ended });
        Ok(())
    }

    /// Has nothing run any more, from now on: what ends meanwhile is not run again.
    pub(super) fn start_no_more(&self) {
        self.starts_no_more.store(true, Ordering::Relaxed);
    }

    fn order(&mut self, order: Order) -> Result<(), Box<Refusal>> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let sent = keeper.orders.try_send(order);
        let _ = keeper.wake.write(1);
        match sent {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                let reason = format!("{ORDERS_MAX} orders about durable processes wait already, which is the limit");
                Err(Box::new(Refusal::new(Code::Overloaded, reason).retry_after_ms(millis_up(RETRY_HINT))))
            }
            Err(TrySendError::Disconnected(_)) => {
                // The next request starts another one, which finds everything in the store.
                self.keeper = None;
                Err(Box::new(super::telling::fault("the keeper of durable processes is gone")))
            }
        }
    }

    /// How many processes this broker has in hand.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// The keeper, which is to give its leases up. No other one is started.
    pub(super) fn leave(&mut self) -> Option<KeeperHandle> {
        self.has_left = true;
        self.keeper.take()
    }
}

impl KeeperHandle {
    /// Has the leases given up. It may have reports to make until then, which somebody must read.
    pub(super) fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        let _ = self.wake.write(1);
        let _ = self.ended.recv_timeout(STOP_PATIENCE);
    }
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot read the facts of this process")]
    Facts(#[source] io::Error),
    #[error(transparent)]
    Open(OpenError),
    #[error("no thread for durable processes")]
    Thread(#[from] io::Error),
}

impl Driver {
    /// Takes a request about durable processes, of somebody who may control the broker.
    pub(super) fn process_request(
        &mut self,
        session: &Session,
        request_id: RequestId,
        request: AdminRequest,
    ) -> Result<(), Box<Refusal>> {
        let asker = Asker { session: session.id, request_id };
        let parse = |id: &str| ProcessId::parse(id).map_err(|error| malformed(error.to_string()));
        let is_run = matches!(request, AdminRequest::Run { .. });
        if is_run || self.processes.has_left {
            self.check_serving()?;
        }
        if self.processes.keeper.is_none() && (is_run || self.processes.has_store()) {
            self.processes.start(None).map_err(|error| Box::new(super::telling::fault(&chain(&error))))?;
        }
        let has_keeper = self.processes.keeper.is_some();
        match request {
            AdminRequest::Run { spec } => {
                let registration = Registration::parse(spec, |target| resolve_work(self, target))?;
                self.processes.order(Order::Run { asker, registration: Box::new(registration) })
            }
            AdminRequest::Wait { id, wait_ms } => {
                self.check_serving()?;
                let id = parse(&id)?;
                if !has_keeper {
                    return Err(requests::unknown(&id, []));
                }
                self.wait_for_process(session, request_id, id, wait_ms)
            }
            AdminRequest::Processes { id } => match (id.as_deref().map(parse).transpose()?, has_keeper) {
                (id, true) => self.processes.order(Order::List { asker, id }),
                (Some(id), false) => Err(requests::unknown(&id, [])),
                (None, false) => {
                    reply(session, request_id, &json!({ "processes": [] }));
                    Ok(())
                }
            },
            AdminRequest::Cancel { id, reason } => {
                let id = parse(&id)?;
                if reason.len() > REASON_MAX {
                    return Err(malformed(format!("the reason is longer than {REASON_MAX} bytes")));
                }
                if !has_keeper {
                    return Err(requests::unknown(&id, []));
                }
                self.processes.order(Order::Cancel { asker, id, reason })
            }
            AdminRequest::Prune { id, older_than_ms } => match (id.as_deref().map(parse).transpose()?, has_keeper) {
                (id, true) => self.processes.order(Order::Prune { asker, id, older_than_ms }),
                (Some(id), false) => Err(requests::unknown(&id, [])),
                (None, false) => {
                    reply(session, request_id, &json!({ "pruned": [] }));
                    Ok(())
                }
            },
            _ => Err(malformed("not about durable processes".to_owned())),
        }
    }

    fn wait_for_process(
        &mut self,
        session: &Session,
        request_id: RequestId,
        id: ProcessId,
        wait_ms: Option<u64>,
    ) -> Result<(), Box<Refusal>> {
        let ticket = Ticket(self.number());
        self.file_request(session.id, request_id, ticket)?;
        if let Err(refusal) = self.processes.order(Order::Wait { ticket, id }) {
            self.unfile_request(session.id, request_id, ticket);
            return Err(refusal);
        }
        let driver = self.me.clone();
        let over = wait_ms.map(|ms| {
            Task(spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                if let Some(driver) = driver.upgrade() {
                    let mut driver = driver.borrow_mut();
                    if let Err(refusal) = driver.processes.order(Order::WaitIsOver { ticket }) {
                        driver.process_waited(ticket, Err(refusal));
                    }
                }
            }))
        });
        self.processes.waits.insert(ticket, Wait { session: session.id, request_id, _over: over });
        Ok(())
    }

    /// Takes what the keeper tells.
    pub(super) fn process_news(&mut self, news: News) {
        match news {
            News::Waited { ticket, result } => {
                self.process_waited(ticket, result.map(|process| json!({ "process": process })))
            }
            News::Happened { id, happening } => {
                self.record_process(id, happening);
                self.manager.changed();
                self.arm();
            }
        }
    }

    fn process_waited(&mut self, ticket: Ticket, result: Result<serde_json::Value, Box<Refusal>>) {
        let Some(wait) = self.processes.waits.remove(&ticket) else { return };
        self.unfile_request(wait.session, wait.request_id, ticket);
        let Some(session) = self.session(wait.session) else { return };
        match result {
            Ok(document) => reply(&session, wait.request_id, &document),
            Err(refusal) => session.refuse(wait.request_id, *refusal),
        }
    }

    /// Forgets one who waits no longer.
    pub(super) fn forget_process_wait(&mut self, ticket: Ticket) {
        if self.processes.waits.remove(&ticket).is_some() {
            let _ = self.processes.order(Order::Forget { ticket });
        }
    }

    /// Refuses all who wait: the next broker answers them.
    pub(super) fn refuse_process_waits(&mut self) {
        let all: Vec<Ticket> = self.processes.waits.keys().copied().collect();
        for ticket in all {
            let Err(refusal) = self.check_serving() else { return };
            self.process_waited(ticket, Err(refusal));
        }
    }
}
