//! Service files that changed, applied.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use broker_proto::{Refusal, RequestId, ServiceName};
use serde_json::json;

use super::admin::reply;
use super::driver::Driver;
use super::report;
use super::session::SessionId;
use crate::services::{Catalog, Service, Severity};

impl Driver {
    /// Takes over what was read. Backends that run keep what they were started with; a service whose file has become
    /// bad keeps its last good definition.
    pub(super) fn loaded(
        &mut self,
        number: u64,
        read: Result<Box<Catalog>, Box<Refusal>>,
        asker: Option<(SessionId, RequestId)>,
    ) {
        let mut catalog = match read {
            Ok(catalog) => *catalog,
            Err(refusal) => {
                self.tell_reloaded(format!("not reloaded: {}", refusal.reason));
                if let Some((session, request_id)) = asker
                    && let Some(session) = self.session(session)
                {
                    session.refuse(request_id, *refusal);
                }
                return self.arm();
            }
        };
        // Reads may finish out of order: one that was asked for earlier changes nothing after a later one.
        if number < self.newest_load {
            catalog = self.catalog.clone();
        }
        self.newest_load = self.newest_load.max(number);
        let old = std::mem::take(&mut self.catalog.services);
        keep_last_good(&old, &mut catalog);
        let new = &catalog.services;
        let added: Vec<&ServiceName> = new.keys().filter(|&name| !old.contains_key(name)).collect();
        let removed: Vec<&ServiceName> = old.keys().filter(|&name| !new.contains_key(name)).collect();
        let changed: Vec<&ServiceName> = new
            .iter()
            .filter(|(name, service)| old.get(*name).is_some_and(|o| o != *service))
            .map(|(n, _)| n)
            .collect();
        let names = |names: &[&ServiceName]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let document = json!({
            "services": new.len(),
            "versions": new.values().map(|service| service.versions().len()).sum::<usize>(),
            "added": names(&added),
            "changed": names(&changed),
            "removed": names(&removed),
            "problems": report::problems(&catalog.problems),
        });
        tracing::info!(
            services = new.len(),
            added = added.len(),
            changed = changed.len(),
            removed = removed.len(),
            "reloaded"
        );
        let numbers = [(added.len(), "added"), (changed.len(), "changed"), (removed.len(), "removed")];
        let numbers =
            numbers.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!(", {number} {what}"));
        let services = if new.len() == 1 { "service" } else { "services" };
        let outcome = format!("reloaded {} {services}{}", new.len(), numbers.collect::<String>());
        self.catalog = catalog;
        self.lookups.clear();
        self.log_problems();
        self.redefine_changed();
        self.tell_reloaded(outcome);
        self.arm();
        if let Some((session, request_id)) = asker
            && let Some(session) = self.session(session)
        {
            reply(&session, request_id, &document);
        }
    }

    /// Tells the machines whose definition is another now, and marks those who have none any more.
    fn redefine_changed(&mut self) {
        let mut changed = Vec::new();
        for (id, key, backend) in self.registry.iter() {
            let Some(hosted) = self.hosted.get_mut(&id) else { continue };
            let service = self.catalog.services.get(&key.service);
            let definition = service.and_then(|service| service.daemon(&key.version));
            hosted.removed = definition.is_none();
            if !backend.is_live() {
                hosted.drop_unserved_listener();
            }
            changed.extend(definition.filter(|new| **new != hosted.definition).map(|new| (id, Arc::clone(new))));
        }
        for (id, definition) in changed {
            self.redefine(id, definition);
        }
    }

    pub(super) fn log_problems(&self) {
        for problem in &self.catalog.problems {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
    }
}

/// A service that is missing because its own file has errors now stays as it was.
fn keep_last_good(old: &BTreeMap<ServiceName, Service>, catalog: &mut Catalog) {
    for (name, service) in old {
        if catalog.services.contains_key(name) {
            continue;
        }
        // The file has an error, or its folder cannot be read at all.
        let is_why = |file: &Path| file == service.source || Some(file) == service.source.parent();
        let spoiled = catalog.problems.iter_mut().find(|p| p.severity == Severity::Error && is_why(&p.file));
        if let Some(problem) = spoiled {
            problem.message.push_str(&format!(" (the broker goes on with the last good definition of `{name}`)"));
            catalog.services.insert(name.clone(), service.clone());
        }
    }
}
