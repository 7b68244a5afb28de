//! Versions: which of the installed ones a client gets.
//!
//! Owns the choice. What is installed and what the rules say comes from the service file, what is asked for from the
//! client; the grammar of both is `broker-proto`'s.

use std::collections::BTreeMap;

use broker_proto::Requirement;
use semver::{Prerelease, Version};

/// Which installed versions nobody may have, whatever is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct VersionRules {
    /// What is lower is refused. By precedence, so a pre-release of the minimum is lower.
    pub(crate) minimum: Option<Version>,
    /// What one of these admits is refused.
    pub(crate) deny: Vec<Requirement>,
}

/// The rule that blocks a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rule {
    /// The version is lower than the minimum.
    #[error("below the minimum {0}")]
    Minimum(Version),
    /// The version is denied.
    #[error("denied by `{0}`")]
    Deny(String),
}

/// Why there is no version for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoVersion {
    /// No installed version satisfies the requirement.
    #[error("no installed version satisfies `{requirement}`: {}", there_is(available))]
    Unsupported {
        requirement: String,
        /// All that is installed, highest first.
        available: Vec<Version>,
    },
    /// Some versions satisfy the requirement, but each is below the minimum or denied.
    #[error("version {version} satisfies `{requirement}`, but it is {rule}")]
    Blocked {
        requirement: String,
        /// The version that the client would have got.
        version: Version,
        rule: Rule,
    },
}

impl VersionRules {
    /// Finds the rule that blocks a version, if one does.
    pub(crate) fn blocks(&self, version: &Version) -> Option<Rule> {
        if let Some(minimum) = &self.minimum
            && version.cmp_precedence(minimum).is_lt()
        {
            return Some(Rule::Minimum(minimum.clone()));
        }
        self.deny.iter().find(|denied| denies(denied, version)).map(|denied| Rule::Deny(denied.to_string()))
    }
}

/// Whether a deny rule hits a version. A rule that names one whole version hits that one alone; a range also hits the
/// pre-releases of the versions in it, which semver leaves out of ranges so that nobody gets one unasked.
fn denies(rule: &Requirement, version: &Version) -> bool {
    let names_one_version = Version::parse(rule.as_str().trim()).is_ok();
    let release = Version { pre: Prerelease::EMPTY, ..version.clone() };
    rule.matches(version) || !names_one_version && rule.matches(&release)
}

/// Chooses the highest installed version that satisfies the requirement and that no rule blocks.
///
/// A pre-release is chosen only if the requirement admits it and no release is left: `*` admits all of them, but means
/// a release where there is one.
///
/// # Errors
/// [`NoVersion::Unsupported`] if none satisfies the requirement, [`NoVersion::Blocked`] if those that do are blocked.
pub(crate) fn choose<'v, T>(
    installed: &'v BTreeMap<Version, T>,
    rules: &VersionRules,
    requirement: &Requirement,
) -> Result<(&'v Version, &'v T), NoVersion> {
    let highest_first = || installed.iter().rev().filter(|(version, _)| requirement.matches(version));
    let releases = highest_first().filter(|(version, _)| version.pre.is_empty());
    let pre_releases = highest_first().filter(|(version, _)| !version.pre.is_empty());
    let mut blocked = None;
    for (version, what) in releases.chain(pre_releases) {
        match rules.blocks(version) {
            None => return Ok((version, what)),
            Some(rule) => blocked = blocked.or(Some((version, rule))),
        }
    }
    let requirement = requirement.to_string();
    Err(match blocked {
        Some((version, rule)) => NoVersion::Blocked { requirement, version: version.clone(), rule },
        None => NoVersion::Unsupported { requirement, available: installed.keys().rev().cloned().collect() },
    })
}

fn there_is(available: &[Version]) -> String {
    if available.is_empty() {
        return "none is installed".to_owned();
    }
    let versions: Vec<String> = available.iter().map(Version::to_string).collect();
    format!("there is {}", versions.join(", "))
}

#[cfg(test)]
mod tests {
    use broker_proto::parse_version;
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        parse_version(text).expect("a version")
    }

    fn requirement(text: &str) -> Requirement {
        Requirement::parse(text).expect("a requirement")
    }

    fn rules(minimum: Option<&str>, deny: &[&str]) -> VersionRules {
        VersionRules { minimum: minimum.map(version), deny: deny.iter().map(|text| requirement(text)).collect() }
    }

    fn check(installed: &str, rules: &VersionRules, asked: &str, expect: &str) {
        let installed: BTreeMap<Version, ()> = installed.split_whitespace().map(|text| (version(text), ())).collect();
        let chosen = choose(&installed, rules, &requirement(asked));
        let text = chosen.map_or_else(|error| error.to_string(), |(version, ())| version.to_string());
        assert_eq!(text, expect, "{asked} of {installed:?}");
    }

    #[test]
    fn the_highest_satisfying_version_is_chosen() {
        let free = VersionRules::default();
        check("6.2 7.0.15 7.2 8", &free, "^7", "7.2.0");
        check("6.2 7.0.15 7.2 8", &free, "*", "8.0.0");
        check("6.2 7.0.15 7.2 8", &free, "7.0.15", "7.0.15");
        check("9.0.0 10.0.0", &free, "*", "10.0.0");
    }

    #[test]
    fn a_pre_release_is_chosen_only_where_it_is_admitted() {
        let free = VersionRules::default();
        check("1.0 1.1-rc.1", &free, "^1", "1.0.0");
        check("1.0 2.0-rc.1", &free, "*", "1.0.0");
        check("2.0-rc.1 2.0-rc.2", &free, "*", "2.0.0-rc.2");
        check("1.0 2.0-rc.1", &free, "2.0.0-rc.1", "2.0.0-rc.1");
        check("2.0-rc.1 2.0-rc.2", &free, "^2.0.0-rc.1", "2.0.0-rc.2");
        check("2.0-rc.1", &free, "^2", "no installed version satisfies `^2`: there is 2.0.0-rc.1");
    }

    #[test]
    fn without_a_satisfying_version_the_answer_lists_what_there_is() {
        let free = VersionRules::default();
        check("7 8.1 8", &free, "^9", "no installed version satisfies `^9`: there is 8.1.0, 8.0.0, 7.0.0");
        check("", &free, "*", "no installed version satisfies `*`: none is installed");
    }

    #[test]
    fn a_blocked_version_gives_way_to_a_lower_one() {
        check("7.0.2 7.0.3", &rules(None, &["7.0.3"]), "^7", "7.0.2");
        check("7.0.2 8", &rules(None, &[">=8"]), "*", "7.0.2");
    }

    #[test]
    fn when_all_that_satisfy_are_blocked_the_answer_names_the_rule() {
        let below = "version 6.2.0 satisfies `^6`, but it is below the minimum 7.0.0";
        check("6 6.2 7", &rules(Some("7"), &[]), "^6", below);
        check("7.0.3 8", &rules(None, &["7.0.3"]), "^7", "version 7.0.3 satisfies `^7`, but it is denied by `7.0.3`");
        check("7 8", &rules(Some("7.5"), &["^8"]), "*", "version 8.0.0 satisfies `*`, but it is denied by `^8`");
    }

    #[test]
    fn a_pre_release_of_the_minimum_is_below_it() {
        assert_eq!(rules(Some("7"), &[]).blocks(&version("7.0.0-rc.1")), Some(Rule::Minimum(version("7"))));
        assert_eq!(rules(Some("7"), &[]).blocks(&version("7.0.0")), None);
    }

    #[test]
    fn a_denied_range_covers_its_pre_releases_but_a_denied_version_stands_alone() {
        assert!(rules(None, &["<7.2"]).blocks(&version("7.1.0-rc.1")).is_some());
        assert!(rules(None, &["7.1.0"]).blocks(&version("7.1.0-rc.1")).is_none());
        assert!(rules(None, &["7.1.0-rc.1"]).blocks(&version("7.1.0-rc.1")).is_some());
        assert!(rules(None, &["*"]).blocks(&version("1.0.0-alpha")).is_some());
    }

    fn any_version() -> impl Strategy<Value = Version> {
        "[0-3]\\.[0-3]\\.[0-2](-rc\\.[12])?".prop_map(|text| version(&text))
    }

    fn any_requirement() -> impl Strategy<Value = Requirement> {
        "\\*|[\\^~]?[0-3](\\.[0-3](\\.[0-2](-rc\\.[12])?)?)?|(>=|<)[0-3](\\.[0-3])?".prop_map(|text| requirement(&text))
    }

    fn any_rules() -> impl Strategy<Value = VersionRules> {
        (prop::option::of(any_version()), prop::collection::vec(any_requirement(), 0..3))
            .prop_map(|(minimum, deny)| VersionRules { minimum, deny })
    }

    proptest! {
        /// The choice is right: it is installed, asked for and free, and nothing better is; a refusal is right too.
        #[test]
        fn the_choice_is_the_best_that_is_allowed(
            installed in prop::collection::btree_map(any_version(), Just(()), 0..8),
            rules in any_rules(),
            asked in any_requirement(),
        ) {
            let satisfying = || installed.keys().filter(|version| asked.matches(version));
            let allowed = || satisfying().filter(|version| rules.blocks(version).is_none());
            match choose(&installed, &rules, &asked) {
                Ok((chosen, ())) => {
                    prop_assert!(allowed().any(|version| version == chosen));
                    let same_kind = |version: &&Version| version.pre.is_empty() == chosen.pre.is_empty();
                    prop_assert_eq!(allowed().filter(same_kind).max(), Some(chosen));
                    prop_assert!(chosen.pre.is_empty() || allowed().all(|version| !version.pre.is_empty()));
                }
                Err(NoVersion::Blocked { version, rule, .. }) => {
                    prop_assert_eq!(allowed().count(), 0);
                    prop_assert!(satisfying().any(|one| *one == version));
                    prop_assert_eq!(rules.blocks(&version), Some(rule));
                }
                Err(NoVersion::Unsupported { available, .. }) => {
                    prop_assert_eq!(satisfying().count(), 0);
                    prop_assert_eq!(available.len(), installed.len());
                    prop_assert!(available.is_sorted_by(|a, b| a >= b));
                }
            }
        }

        #[test]
        fn another_rule_never_unblocks(version in any_version(), rules in any_rules(), more in any_requirement()) {
            let mut stricter = rules.clone();
            stricter.deny.push(more);
            prop_assert!(rules.blocks(&version).is_none() || stricter.blocks(&version).is_some());
        }
    }
}
