//! The image: every row as it should be on the disk, and how a change alters it. PURE: no clock, no disk.

use std::collections::HashMap;

use crate::core::registry::BackendKey;

use super::sql::{Content, RawRow};
use super::{Change, Phase, Row};

/// What the file should hold.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) rows: HashMap<BackendKey, Box<Row>>,
    /// Rows that are not understood, kept as they are.
    pub(super) unreadable: Vec<RawRow>,
}

impl Image {
    pub(super) fn new(content: Content) -> Self {
        let rows = content.rows.into_iter().map(|row| (row.key.clone(), Box::new(row))).collect();
        Self { rows, unreadable: content.unreadable }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.unreadable.len()
    }

    pub(super) fn row(&self, key: &BackendKey) -> Option<&Row> {
        self.rows.get(key).map(Box::as_ref)
    }

    /// Applies a change; whether the row of its key may have to be written.
    pub(super) fn apply(&mut self, change: Change) -> bool {
        let key = change.key();
        // A row that is not understood gives way to what is known better, and to nothing less.
        if matches!(change, Change::Told { .. } | Change::Forgotten { .. }) {
            self.unreadable.retain(|raw| raw.unreadable.key.as_ref() != Some(key));
        }
        match change {
            Change::Forgotten { key } => {
                self.rows.remove(&key);
                true
            }
            Change::Told { key, generation, phase, memory } => self.told(key, generation, phase, memory),
            Change::Launch { key, generation, launch, endpoint, process } => {
                let Some(row) = self.of_generation(&key, generation) else { return false };
                let phase = match (row.phase, &process) {
                    (Phase::Intent | Phase::Starting, None) => Phase::Intent,
                    (Phase::Intent | Phase::Starting, Some(_)) => Phase::Starting,
                    (other, _) => other,
                };
                let new = (phase, Some(launch), Some(endpoint), process);
                let old = (row.phase, row.launch.take(), row.endpoint.take(), row.process.take());
                let differs = old != new;
                (row.phase, row.launch, row.endpoint, row.process) = new;
                differs
            }
            Change::Ended { key, generation, outcome } => {
                let Some(row) = self.of_generation(&key, generation) else { return false };
                (row.launch, row.process, row.endpoint) = (None, None, None);
                row.outcome = Some(outcome);
                true
            }
        }
    }

    fn told(&mut self, key: BackendKey, generation: u64, phase: Phase, memory: String) -> bool {
        let Some(row) = self.rows.get_mut(&key) else {
            let (launch, process, endpoint, outcome) = (None, None, None, None);
            let row = Row { key: key.clone(), generation, phase, memory, launch, process, endpoint, outcome };
            self.rows.insert(key, Box::new(row));
            return true;
        };
        let differs = (row.generation, row.phase, &row.memory) != (generation, phase, &memory);
        if row.generation != generation {
            (row.launch, row.process, row.endpoint) = (None, None, None);
        }
        (row.generation, row.phase, row.memory) = (generation, phase, memory);
        differs
    }

    fn of_generation(&mut self, key: &BackendKey, generation: u64) -> Option<&mut Row> {
        self.rows.get_mut(key).map(Box::as_mut).filter(|row| row.generation == generation)
    }
}

impl Change {
    pub(super) fn key(&self) -> &BackendKey {
        let (Self::Told { key, .. } | Self::Launch { key, .. } | Self::Ended { key, .. } | Self::Forgotten { key }) =
            self;
        key
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ended, forgotten, key, launch, process, told};
    use super::*;

    fn image(changes: impl IntoIterator<Item = Change>) -> Image {
        let mut image = Image::default();
        for change in changes {
            image.apply(change);
        }
        image
    }

    #[track_caller]
    fn check(changes: impl IntoIterator<Item = Change>, expect: impl FnOnce(&Row) -> bool) {
        let image = image(changes);
        let row = image.rows.get(&key("a")).expect("a row");
        assert!(expect(row), "{row:?}");
    }

    #[test]
    fn what_is_told_makes_the_row() {
        check([told("a", 1, Phase::Starting)], |row| {
            (row.generation, row.phase) == (1, Phase::Starting) && row.launch.is_none() && row.outcome.is_none()
        });
    }

    #[test]
    fn a_start_is_an_intent_until_it_has_a_process() {
        let start = told("a", 1, Phase::Starting);
        check([start.clone(), launch("a", 1, None)], |row| row.phase == Phase::Intent && row.launch.is_some());
        check([start, launch("a", 1, None), launch("a", 1, Some(7))], |row| {
            row.phase == Phase::Starting && row.process == Some(process(7)) && row.endpoint.is_some()
        });
    }

    #[test]
    fn a_launch_leaves_a_later_phase() {
        check([told("a", 1, Phase::Stopping), launch("a", 1, Some(7))], |row| {
            row.phase == Phase::Stopping && row.process == Some(process(7))
        });
    }

    #[test]
    fn another_generation_drops_the_launch_of_the_old_one_and_keeps_its_outcome() {
        let old = [told("a", 1, Phase::Starting), launch("a", 1, Some(7))];
        check(old.clone().into_iter().chain([told("a", 1, Phase::Ready)]), |row| row.process.is_some());
        let over = [ended("a", 1, "crashed"), told("a", 2, Phase::Starting)];
        check(old.into_iter().chain(over), |row| {
            row.generation == 2
                && (&row.launch, &row.process, &row.endpoint) == (&None, &None, &None)
                && row.outcome.as_deref() == Some("crashed")
        });
    }

    #[test]
    fn what_is_late_or_of_no_row_changes_nothing() {
        let mut image = image([told("a", 2, Phase::Starting), launch("a", 2, Some(7))]);
        let before = image.rows.clone();
        for late in [launch("a", 1, Some(5)), ended("a", 1, "late"), launch("b", 1, None), ended("b", 1, "none")] {
            assert!(!image.apply(late));
        }
        for again in [told("a", 2, Phase::Starting), launch("a", 2, Some(7))] {
            assert!(!image.apply(again), "nothing new is nothing to write");
        }
        assert_eq!(image.rows, before);
    }

    #[test]
    fn an_end_drops_the_launch_and_leaves_the_phase() {
        check([told("a", 1, Phase::Stopping), launch("a", 1, Some(7)), ended("a", 1, "stopped")], |row| {
            row.phase == Phase::Stopping && row.launch.is_none() && row.process.is_none() && row.endpoint.is_none()
        });
    }

    #[test]
    fn what_is_forgotten_is_gone_and_is_written_even_if_it_was_not_known() {
        let mut image = image([told("a", 1, Phase::Inactive)]);
        assert!(image.apply(forgotten("a")));
        assert!(image.rows.is_empty());
        assert!(image.apply(forgotten("b")), "the file may know of it although the image does not");
    }
}
