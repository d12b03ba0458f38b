//! Surveys of this node that are under way: their answers, and who waits for them.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::counters::SurveyOutcome;
use crate::cluster::control::SurveyResponse;
use crate::cluster::survey::Survey;

/// Surveys under way at most.
const SURVEYS_MAX: usize = 256;

/// Bytes of the answers to one survey at most.
const SURVEY_ANSWERS_BYTES_MAX: usize = 32 << 20;

/// Answers by node, or why there are none.
pub(super) type Answers = Result<BTreeMap<String, SurveyResponse>, SurveyOutcome>;

/// See the module.
#[derive(Default)]
pub(super) struct Surveys {
    last: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    survey: Survey,
    bytes: usize,
    waiter: oneshot::Sender<Answers>,
}

impl Surveys {
    /// Begins a survey among nodes, at least one. None if there are too many.
    pub(super) fn begin(
        &mut self,
        nodes: impl IntoIterator<Item = String>,
    ) -> Option<(u64, oneshot::Receiver<Answers>)> {
        if self.open.len() >= SURVEYS_MAX {
            return None;
        }
        self.last += 1;
        let (waiter, answers) = oneshot::channel();
        let survey = Survey::new(self.last, nodes);
        self.open.insert(self.last, Open { survey, bytes: 0, waiter });
        Some((self.last, answers))
    }

    /// The number of the latest one.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Numbers follow those of another process, whose answers may still come.
    pub(super) fn follow(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Takes the answer of a node. One to a survey that has ended changes nothing.
    pub(super) fn take(&mut self, from: &str, response: SurveyResponse) {
        let id = response.id;
        let Some(open) = self.open.get_mut(&id) else { return };
        let bytes = response.data.len();
        if !open.survey.take(from, response) {
            return;
        }
        open.bytes += bytes;
        if open.bytes > SURVEY_ANSWERS_BYTES_MAX {
            self.answer(id, Some(SurveyOutcome::TooLong));
        } else if open.survey.complete().is_some() {
            self.answer(id, None);
        }
    }

    /// A node has ended, or is known no more: nobody waits for its answers.
    pub(super) fn ended(&mut self, uid: &str) {
        let complete = self.open.iter_mut().filter_map(|(id, open)| {
            open.survey.ended(uid);
            open.survey.complete().map(|_| *id)
        });
        let complete: Vec<u64> = complete.collect();
        complete.into_iter().for_each(|id| self.answer(id, None));
    }

    /// Nobody waits for a survey any more. The nodes that have not answered; none if it has ended before.
    pub(super) fn close(&mut self, id: u64) -> Vec<String> {
        let open = self.open.remove(&id);
        open.map_or_else(Vec::new, |open| open.survey.missing().map(str::to_owned).collect())
    }

    /// The same with the answers that have come.
    pub(super) fn close_partial(
        &mut self,
        id: u64,
    ) -> (BTreeMap<String, SurveyResponse>, Vec<String>) {
        let Some(open) = self.open.remove(&id) else { return Default::default() };
        let silent = open.survey.missing().map(str::to_owned).collect();
        (open.survey.into_answers(), silent)
    }

    fn answer(&mut self, id: u64, failed: Option<SurveyOutcome>) {
        if let Some(open) = self.open.remove(&id) {
            // Nobody may wait any more.
            let _ = open.waiter.send(match failed {
                None => Ok(open.survey.into_answers()),
                Some(outcome) => Err(outcome),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::survey::{Code, response};

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_survey_ends_with_its_last_answer() {
        let mut surveys = Surveys::default();
        let (one, mut first) = surveys.begin(nodes(&["a", "b"])).unwrap();
        let (two, mut second) = surveys.begin(nodes(&["a"])).unwrap();
        surveys.take("a", response(one, Code::Ok, vec![1]));
        surveys.take("a", response(two, Code::Ok, vec![2]));
        surveys.take("a", response(two + 1, Code::Ok, vec![3]));
        assert!(first.try_recv().is_err());
        let answers = second.try_recv().unwrap().unwrap();
        assert_eq!(answers["a"].data, [2]);
        surveys.ended("b");
        assert_eq!(first.try_recv().unwrap().unwrap().len(), 1);
        assert!(surveys.open.is_empty() && surveys.close(one).is_empty());
    }

    #[test]
    fn one_that_is_given_up_names_the_silent_nodes() {
        let mut surveys = Surveys::default();
        let (id, _) = surveys.begin(nodes(&["a", "b", "c"])).unwrap();
        surveys.take("b", response(id, Code::Ok, vec![]));
        assert_eq!(surveys.close(id), ["a", "c"]);
    }

    #[test]
    fn surveys_and_their_answers_are_bounded() {
        let mut surveys = Surveys::default();
        let (id, mut answers) = surveys.begin(nodes(&["a", "b"])).unwrap();
        surveys.take("a", response(id, Code::Ok, vec![0; SURVEY_ANSWERS_BYTES_MAX]));
        assert!(answers.try_recv().is_err());
        surveys.take("b", response(id, Code::Ok, vec![0]));
        assert_eq!(answers.try_recv().unwrap().unwrap_err(), SurveyOutcome::TooLong);
        let all: Vec<_> = (0..SURVEYS_MAX).map(|_| surveys.begin(nodes(&["a"]))).collect();
        assert!(all.iter().all(Option::is_some) && surveys.begin(nodes(&["a"])).is_none());
    }
}
