//! Where backends write to, for those who read it: the paths of files, and how the journal is searched.

use broker_proto::{Refusal, RequestId, Selection};
use serde_json::{Value, json};

use super::admin::no_thread;
use super::clock::now;
use super::driver::Driver;
use super::session::SessionId;
use super::work::Report;
use super::{report, telling};
use crate::core::registry::BackendId;
use crate::journald::stream::first_line;
use crate::process::cgroup::Leaf;
use crate::process::log_file;
use crate::process::log_place::LogPlace;
use crate::services::Log;

impl Driver {
    /// Reports the logs of a selection. Lists folders, on a worker thread.
    pub(super) fn logs(
        &mut self,
        session: SessionId,
        request_id: RequestId,
        selection: &Selection,
    ) -> Result<(), Box<Refusal>> {
        let ids = self.select(selection)?;
        let found: Vec<_> = ids
            .iter()
            .filter_map(|id| {
                let (key, _) = self.registry.get(*id)?;
                let newest = self.hosted.get(id)?.log.as_ref().and_then(LogPlace::file).map(ToOwned::to_owned);
                Some((report::name(key), newest, self.places.logs(key), self.in_journal(*id)))
            })
            .collect();
        let job = move || {
            let logs = found.into_iter().map(|(mut value, newest, folder, journal)| {
                let earlier = log_file::list(&folder).unwrap_or_default();
                let earlier: Vec<_> = earlier.into_iter().filter(|path| Some(path) != newest.as_ref()).collect();
                value["path"] = json!(newest);
                value["previous"] = json!(earlier);
                value["journal"] = json!(journal);
                value
            });
            Report::Reply { session, request_id, document: json!({ "logs": logs.collect::<Vec<_>>() }) }
        };
        let faulty =
            move || Report::Refused { session, request_id, refusal: telling::fault("the look at the logs failed") };
        self.work(job, faulty).map_err(|error| no_thread(&error))
    }

    /// How the newest generation is found in the journal, if it writes there.
    fn in_journal(&self, id: BackendId) -> Option<Value> {
        let (key, backend) = self.registry.get(id)?;
        let hosted = self.hosted.get(&id)?;
        let (generation, first_line, writer) = match &hosted.log {
            Some(LogPlace::Journal(stream)) => (stream.generation, stream.first_line.clone(), Some(stream.writer)),
            // Nothing is on record of a start that was over before this broker was.
            None if hosted.definition.log == Log::Journal => {
                let generation = backend.view(now()).generation;
                (generation, first_line(&key.to_string(), generation), None)
            }
            Some(LogPlace::File(_)) | None => return None,
        };
        let running = hosted.running.as_deref();
        let processes = |running: &super::hosted::Running| {
            let known = running.known.iter().copied().chain([running.main.pid]);
            known.map(nix::unistd::Pid::as_raw).collect::<Vec<_>>()
        };
        Some(json!({
            "identifier": key.service.as_str(),
            "generation": generation,
            "first_line": first_line,
            "written_by": writer,
            "pids": running.map(processes).unwrap_or_default(),
            "cgroup": running.and_then(|running| running.facts.cgroup.as_ref()).map(Leaf::path),
        }))
    }
}
