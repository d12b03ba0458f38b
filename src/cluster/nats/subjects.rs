//! Subjects, which all nodes of a system have to build alike.
//!
//! | subject | content |
//! | --- | --- |
//! | `P.client.CH` | messages of a channel |
//! | `R` + `CH` with parts replaced | the same in raw mode: the data of publications alone |
//! | `P.control`, `P.node.N` | messages between nodes |
//! | `P.roost.probe.N.T.X` | messages of a part of a node to itself; `X` is the process |
//! | `P.roost.probe.N.fence` | messages between two processes of a node |

use crate::edge::subjects::SubjectRules;

/// Builds subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
    rules: SubjectRules,
    is_raw: bool,
}

impl Subjects {
    /// For a prefix; `centrifugo` by default.
    pub fn new(prefix: &str, wildcards: bool) -> Self {
        let rules = SubjectRules::new(wildcards, &format!("{prefix}.client."), Vec::new());
        Self { prefix: prefix.to_owned(), rules, is_raw: false }
    }

    /// In raw mode: messages of channels are data alone, and their subjects have this prefix and these
    /// replacements.
    pub fn raw(
        prefix: &str,
        wildcards: bool,
        raw_prefix: &str,
        replacements: Vec<(String, String)>,
    ) -> Self {
        let rules = SubjectRules::new(wildcards, raw_prefix, replacements);
        Self { prefix: prefix.to_owned(), rules, is_raw: true }
    }

    /// The prefix of all names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Messages of channels are data alone.
    pub fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// How the names of channels become subjects.
    pub fn rules(&self) -> &SubjectRules {
        &self.rules
    }

    /// Messages of a channel.
    pub fn messages(&self, channel: &str) -> String {
        self.rules.subject(channel)
    }

    /// The channel whose messages have this subject, as far as a subject shows it: parts stay replaced.
    pub fn channel_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(self.rules.prefix.as_str())
    }

    /// Messages of all channels.
    pub fn all(&self) -> String {
        format!("{}>", self.rules.prefix)
    }

    /// Messages of one part of a node to itself. `process`: names the process, of which there are two in a takeover.
    pub fn probes(&self, uid: &str, at: usize, process: &str) -> String {
        format!("{}.roost.probe.{uid}.{at}.{process}", self.prefix)
    }

    /// Messages between two processes of a node.
    pub fn fences(&self, uid: &str) -> String {
        format!("{}.roost.probe.{uid}.fence", self.prefix)
    }

    /// Messages to all nodes.
    pub fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }

    /// Messages to one node.
    pub fn node(&self, uid: &str) -> String {
        format!("{}.node.{uid}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_those_of_other_nodes() {
        let subjects = Subjects::new("centrifugo", false);
        assert_eq!(subjects.messages("pres:x"), "centrifugo.client.pres:x");
        assert_eq!(subjects.control(), "centrifugo.control");
        assert_eq!(subjects.node("u"), "centrifugo.node.u");
        assert_eq!(subjects.all(), "centrifugo.client.>");
        assert_eq!(subjects.probes("u", 1, "x"), "centrifugo.roost.probe.u.1.x");
        assert_eq!(subjects.fences("u"), "centrifugo.roost.probe.u.fence");
        assert_eq!(subjects.channel_of("centrifugo.client.news.a"), Some("news.a"));
        assert_eq!(subjects.channel_of("centrifugo.control"), None);
    }

    #[test]
    fn raw_subjects_have_a_prefix_of_their_own() {
        let replacements = vec![(":".to_owned(), ".".to_owned())];
        let subjects = Subjects::raw("centrifugo", false, "raw.", replacements);
        assert_eq!(subjects.messages("news:a"), "raw.news.a");
        assert_eq!(subjects.channel_of("raw.news.a"), Some("news.a"));
        assert_eq!(subjects.control(), "centrifugo.control");
    }
}
