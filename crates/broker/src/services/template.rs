//! Texts with placeholders, `--unixsocket {endpoint}`.
//!
//! Owns the names of the placeholders and the two literal braces `{{` and `}}`. Parsed once, when the file is loaded;
//! filling one in cannot fail.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::problem::{listed, quoted, suggestion};

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placeholder {
    /// The socket's path, or `host:port`.
    Endpoint,
    /// The port, for a tcp endpoint only.
    Port,
    Service,
    /// The version as the installation spells it: the text of `version`, or the name of the folder.
    Version,
    Instance,
    /// A private folder per key that outlives the backend.
    StateDir,
}

impl Placeholder {
    const ALL: [Self; 6] = [Self::Endpoint, Self::Port, Self::Service, Self::Version, Self::Instance, Self::StateDir];

    fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Port => "port",
            Self::Service => "service",
            Self::Version => "version",
            Self::Instance => "instance",
            Self::StateDir => "state_dir",
        }
    }
}

/// What runs, which decides what there is to be filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A daemon on a Unix socket.
    Unix,
    /// A daemon on a port.
    Tcp,
    /// A process, which has no endpoint.
    Process,
}

impl Subject {
    /// Says which placeholder has nothing to stand for, and what to write instead.
    pub(crate) fn check(self, template: &Template) -> Result<(), String> {
        match self {
            Self::Unix if template.uses(Placeholder::Port) => {
                Err("{port} is for kind = \"tcp\" in [endpoint]; {endpoint} is the path of the socket".to_owned())
            }
            Self::Process => match [Placeholder::Endpoint, Placeholder::Port].into_iter().find(|p| template.uses(*p)) {
                Some(placeholder) => {
                    let there = Placeholder::ALL.into_iter().filter(|p| Self::Process.has(*p));
                    let there = listed(there.map(|placeholder| format!("{{{}}}", placeholder.name())), "and");
                    Err(format!("a process has no endpoint and so no {{{}}}: there are {there}", placeholder.name()))
                }
                None => Ok(()),
            },
            Self::Unix | Self::Tcp => Ok(()),
        }
    }

    fn has(self, placeholder: Placeholder) -> bool {
        match placeholder {
            Placeholder::Endpoint => self != Self::Process,
            Placeholder::Port => self == Self::Tcp,
            Placeholder::Service | Placeholder::Version | Placeholder::Instance | Placeholder::StateDir => true,
        }
    }
}

/// What is filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'v> {
    /// The socket's path, or `host:port`. A template of a process does not ask for it.
    pub(crate) endpoint: &'v str,
    /// The port of a tcp endpoint. Only a template of a service on one asks for it.
    pub(crate) port: Option<u16>,
    pub(crate) service: &'v str,
    /// [`Definition::spelling`](super::Definition::spelling).
    pub(crate) version: &'v str,
    pub(crate) instance: &'v str,
    pub(crate) state_dir: &'v str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Placeholder(Placeholder),
}

/// A text with placeholders. Displays as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Template {
    segments: Vec<Segment>,
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.to_string()
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl Template {
    /// Parses a text.
    ///
    /// # Errors
    /// Says which placeholder is unknown or which brace stands alone, and what to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut template = Self::default();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            template.push(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            rest = if let Some(after) = after.strip_prefix(brace) {
                template.push(brace);
                after
            } else if brace == "}" {
                return Err(format!("{} has a `}}` without its `{{`: a literal brace is written `}}}}`", quoted(text)));
            } else {
                let Some((name, after)) = after.split_once('}') else {
                    return Err(format!(
                        "{} has a `{{` without its `}}`: a literal brace is written `{{{{`",
                        quoted(text)
                    ));
                };
                template.segments.push(Segment::Placeholder(placeholder(name)?));
                after
            };
        }
        template.push(rest);
        Ok(template)
    }

    /// A text that is taken as it stands.
    pub(crate) fn literal(text: &str) -> Self {
        let mut template = Self::default();
        template.push(text);
        template
    }

    fn push(&mut self, text: &str) {
        match self.segments.last_mut() {
            _ if text.is_empty() => {}
            Some(Segment::Literal(literal)) => literal.push_str(text),
            _ => self.segments.push(Segment::Literal(text.to_owned())),
        }
    }

    /// Fills the placeholders in.
    pub(crate) fn fill(&self, values: &Values<'_>) -> String {
        let mut filled = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => filled.push_str(text),
                Segment::Placeholder(Placeholder::Endpoint) => filled.push_str(values.endpoint),
                Segment::Placeholder(Placeholder::Port) => {
                    filled.push_str(&values.port.map(|port| port.to_string()).unwrap_or_default());
                }
                Segment::Placeholder(Placeholder::Service) => filled.push_str(values.service),
                Segment::Placeholder(Placeholder::Version) => filled.push_str(values.version),
                Segment::Placeholder(Placeholder::Instance) => filled.push_str(values.instance),
                Segment::Placeholder(Placeholder::StateDir) => filled.push_str(values.state_dir),
            }
        }
        filled
    }

    /// Whether the text asks for this.
    pub(crate) fn uses(&self, placeholder: Placeholder) -> bool {
        self.segments.contains(&Segment::Placeholder(placeholder))
    }

    /// Whether the filled text is an absolute path, whatever is filled in.
    pub(crate) fn is_absolute(&self) -> bool {
        match self.segments.first() {
            Some(Segment::Literal(text)) => text.starts_with('/'),
            Some(Segment::Placeholder(placeholder)) => *placeholder == Placeholder::StateDir,
            None => false,
        }
    }

    /// Whether the filled text is one component of a path, such as a program that is looked up in `PATH`.
    pub(crate) fn is_bare_name(&self) -> bool {
        !self.segments.is_empty()
            && self.segments.iter().all(|segment| match segment {
                Segment::Literal(text) => !text.contains('/'),
                Segment::Placeholder(placeholder) => {
                    !matches!(placeholder, Placeholder::StateDir | Placeholder::Endpoint)
                }
            })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Literal(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Segment::Placeholder(placeholder) => write!(f, "{{{}}}", placeholder.name()),
        })
    }
}

fn placeholder(name: &str) -> Result<Placeholder, String> {
    Placeholder::ALL.into_iter().find(|placeholder| placeholder.name() == name).ok_or_else(|| {
        let meant = suggestion(name, Placeholder::ALL.map(Placeholder::name)).unwrap_or_default();
        let known = listed(Placeholder::ALL.map(|placeholder| format!("{{{}}}", placeholder.name())), "and");
        format!(
            "unknown placeholder {}{meant} (known are {known}; literal braces are written `{{{{` and `}}}}`)",
            quoted(&format!("{{{name}}}"))
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUES: Values<'_> = Values {
        endpoint: "/run/e.sock",
        port: Some(6379),
        service: "redis",
        version: "7.0",
        instance: "default",
        state_dir: "/var/lib/broker/x",
    };

    fn check(input: &str, expect: &str) {
        let result = Template::parse(input).map_or_else(|error| error, |template| template.fill(&VALUES));
        assert_eq!(result, expect, "{input:?}");
    }

    #[test]
    fn placeholders_are_filled_in() {
        check("", "");
        check("plain", "plain");
        check("{endpoint}", "/run/e.sock");
        check("--bind={endpoint},{port}", "--bind=/run/e.sock,6379");
        check("{service}-{version}-{instance}@{state_dir}", "redis-7.0-default@/var/lib/broker/x");
        check("ä{port}ö", "ä6379ö");
    }

    #[test]
    fn doubled_braces_are_literal() {
        check("{{}}", "{}");
        check("{{endpoint}}", "{endpoint}");
        check("{{{endpoint}}}", "{/run/e.sock}");
    }

    #[test]
    fn wrong_braces_say_what_to_write() {
        let error = |input| Template::parse(input).expect_err("wrong");
        insta::assert_snapshot!(error("{endpiont}"), @"unknown placeholder `{endpiont}`, did you mean `endpoint`? (known are {endpoint}, {port}, {service}, {version}, {instance} and {state_dir}; literal braces are written `{{` and `}}`)");
        insta::assert_snapshot!(error("{\"a\": 1}"), @r#"unknown placeholder `{"a": 1}` (known are {endpoint}, {port}, {service}, {version}, {instance} and {state_dir}; literal braces are written `{{` and `}}`)"#);
        insta::assert_snapshot!(error("a{port"), @"`a{port` has a `{` without its `}`: a literal brace is written `{{`");
        insta::assert_snapshot!(error("port}"), @"`port}` has a `}` without its `{`: a literal brace is written `}}`");
    }

    #[test]
    fn a_path_is_absolute_or_bare_or_neither() {
        let kind = |input| {
            let template = Template::parse(input).expect("valid");
            (template.is_absolute(), template.is_bare_name())
        };
        for absolute in ["/", "/opt/{version}/x", "{state_dir}", "{state_dir}/x"] {
            assert_eq!(kind(absolute), (true, false), "{absolute}");
        }
        for bare in ["redis-server", "{service}", "python{version}"] {
            assert_eq!(kind(bare), (false, true), "{bare}");
        }
        for neither in ["", "./x", "{service}/x", "~/bin/x", "{endpoint}"] {
            assert_eq!(kind(neither), (false, false), "{neither}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_to_what_it_displays_as(text in "[a{}/]{0,12}|[{]{0,2}(endpoint|port)[}]{0,2}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(template.to_string(), text);
            }
        }

        #[test]
        fn an_escaped_text_is_filled_in_as_itself(text in ".*") {
            let escaped = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(Template::parse(&escaped).map(|template| template.fill(&VALUES)), Ok(text));
        }
    }
}
