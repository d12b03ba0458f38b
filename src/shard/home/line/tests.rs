use super::*;

const LIFE: &str = "a life";
const KEPT: usize = 100;
const LIMIT: usize = 50;

fn entry_of(after: u64, offset: u64, text: &str) -> Entry {
    let published = Published { data: text.as_bytes(), ..Published::default() };
    Entry { after, time_ms: 0, delta: false, source: None, record: Record::new(offset, &published) }
}

fn entry(offset: u64) -> Entry {
    entry_of(offset - 1, offset, &offset.to_string())
}

fn top(offset: u64) -> Position {
    Position { offset, epoch: Some(LIFE.into()) }
}

fn offsets(effects: &Effects) -> Vec<u64> {
    effects.deliver.iter().map(|next| next.entry.record.offset()).collect()
}

fn query(line: &mut Line, need: Need, unmet: bool) -> Option<Query> {
    line.query(Ticket(1), need, unmet, LIMIT)
}

fn answered(line: &mut Line, top: Position, entries: Vec<Entry>) -> Effects {
    line.answered(Millis(0), top, entries, LIMIT, KEPT)
}

/// The line has asked for what is behind its position; the answer.
fn checked(line: &mut Line, at: Position, entries: Vec<Entry>) -> Effects {
    let Some(Query::Read(page)) = query(line, Need::Nothing, false) else { panic!() };
    assert!(!page.reverse && page.since.is_some());
    answered(line, at, entries)
}

/// A line whose subscribers stand at this offset.
fn at(offset: u64) -> Line {
    let mut line = Line::new(0);
    line.listen();
    let Some(Query::Read(page)) = query(&mut line, Need::Position, false) else { panic!() };
    assert_eq!((page.limit, page.reverse), (1, true));
    let newest = (offset > 0).then(|| entry(offset));
    let effects = answered(&mut line, top(offset), newest.into_iter().collect());
    assert!(effects.deliver.is_empty() && effects.gap.is_none() && line.is_settled());
    line
}

fn arrives(line: &mut Line, entry: Entry) -> Effects {
    line.arrive(Millis(0), Some(LIFE.into()), entry, KEPT)
}

fn arrive(line: &mut Line, offset: u64) -> Vec<u64> {
    let effects = arrives(line, entry(offset));
    assert_eq!(effects.gap, None);
    offsets(&effects)
}

fn since(offset: u64) -> Since {
    Since { offset, epoch: LIFE.into() }
}

fn missed(line: &Line, since: Since) -> Option<Vec<u64>> {
    match line.missed(&since, LIMIT) {
        Missed::All(list) => Some(list.into_iter().map(Record::offset).collect()),
        Missed::Gone => None,
        Missed::Unread => panic!("a read is needed"),
    }
}

#[test]
fn the_next_publication_is_delivered_and_a_copy_is_dropped() {
    let mut line = at(3);
    assert_eq!((arrive(&mut line, 4), arrive(&mut line, 4)), (vec![4], vec![]));
    assert_eq!((arrive(&mut line, 3), arrive(&mut line, 5)), (vec![], vec![5]));
    assert!(line.is_settled() && query(&mut line, Need::Position, false).is_none());
    // One that is older than all that is known is held against the broker.
    assert!(arrive(&mut line, 2).is_empty() && !line.is_settled());
    assert!(checked(&mut line, top(5), vec![entry(5)]).gap.is_none() && line.is_settled());
}

#[test]
fn without_history_all_is_delivered_and_may_be_a_patch_to_the_one_before() {
    let mut line = Line::new(0);
    let bare = |delta| Entry { delta, ..entry_of(0, 0, "x") };
    let mut base = |delta| {
        let effects = line.arrive(Millis(0), None, bare(delta), KEPT);
        assert_eq!(effects.deliver.len(), 1);
        effects.deliver[0].base.is_some()
    };
    assert_eq!([base(true), base(true), base(false), base(true)], [false, true, false, false]);
}

#[test]
fn a_hole_is_closed_by_one_read() {
    let mut line = at(3);
    assert!(arrive(&mut line, 6).is_empty() && !line.is_settled());
    let effects = checked(&mut line, top(6), vec![entry(3), entry(4), entry(5), entry(6)]);
    assert_eq!((offsets(&effects), effects.gap, effects.repaired), (vec![4, 5, 6], None, 3));
    // The answer may be older than what came since.
    assert!(arrive(&mut line, 9).is_empty());
    let Some(Query::Read(_)) = query(&mut line, Need::Nothing, false) else { panic!() };
    assert!(arrive(&mut line, 11).is_empty() && query(&mut line, Need::Missed, true).is_none());
    let effects = answered(&mut line, top(9), vec![entry(6), entry(7), entry(8), entry(9)]);
    assert_eq!((offsets(&effects), line.is_settled()), (vec![7, 8, 9], false));
    assert_eq!(arrive(&mut line, 10), [10, 11]);
    assert!(line.is_settled() && line.held == 0);
}

#[test]
fn offsets_may_have_holes() {
    let mut line = at(3);
    assert_eq!(offsets(&arrives(&mut line, entry_of(3, 9, "9"))), [9]);
    assert!(arrives(&mut line, entry_of(20, 25, "25")).deliver.is_empty());
    let read = vec![entry_of(3, 9, "9"), entry_of(9, 20, "20"), entry_of(20, 25, "25")];
    assert_eq!(offsets(&checked(&mut line, top(25), read)), [20, 25]);
    assert_eq!(missed(&line, since(9)), Some(vec![20, 25]));
    // The stream has no publication with this offset.
    assert_eq!(missed(&line, since(10)), None);
    // One that follows the publication before the position: the one at the position has gone.
    assert!(arrives(&mut line, entry_of(20, 30, "30")).deliver.is_empty());
    let effects = checked(&mut line, top(30), vec![entry_of(20, 30, "30")]);
    assert_eq!(effects.gap, Some(Cause::Rewind));
}

#[test]
fn trimmed_publications_are_a_gap() {
    let mut line = at(3);
    assert!(arrive(&mut line, 9).is_empty());
    let effects = checked(&mut line, top(9), vec![entry(8), entry(9)]);
    assert_eq!((effects.gap, line.is_settled()), (Some(Cause::Trimmed), false));
    let Some(Query::Read(page)) = query(&mut line, Need::Missed, false) else { panic!() };
    assert_eq!((page.limit, page.reverse), (LIMIT, true));
    let effects = answered(&mut line, top(10), vec![entry(10), entry(9), entry(8)]);
    assert!(effects.gap.is_none() && line.at() == Some(&top(10)) && line.held == 0);
    assert_eq!((missed(&line, since(8)), missed(&line, since(6))), (Some(vec![9, 10]), None));
}

#[test]
fn another_life_is_a_gap_and_late_copies_of_the_old_one_are_none() {
    let mut line = at(3);
    let other = Position { offset: 5, epoch: Some("another".into()) };
    let of_other =
        |line: &mut Line, offset| line.arrive(Millis(0), other.epoch.clone(), entry(offset), KEPT);
    assert!(of_other(&mut line, 5).deliver.is_empty() && !line.is_settled());
    // It came before the read was sent: the broker has it.
    let effects = checked(&mut line, other.clone(), vec![entry(5)]);
    assert_eq!(effects.gap, Some(Cause::Epoch));
    assert!(matches!(query(&mut line, Need::Nothing, false), Some(Query::Read(_))));
    answered(&mut line, other.clone(), vec![entry(5)]);
    assert!(line.is_settled() && line.at() == Some(&other));
    assert!(arrive(&mut line, 4).is_empty() && !line.is_settled());
    let effects = checked(&mut line, other.clone(), vec![entry(5)]);
    assert!(effects.gap.is_none() && line.is_settled() && line.held == 0);
    // One of a newer life that comes while a read is open is not a late copy.
    line.checks = true;
    assert!(query(&mut line, Need::Nothing, false).is_some());
    assert!(arrive(&mut line, 1).is_empty());
    assert!(answered(&mut line, other, vec![entry(5)]).gap.is_none());
    assert!(!line.is_settled());
}

#[test]
fn a_stream_that_went_back_gets_another_epoch() {
    let renewed = Position { offset: 2, epoch: Some("renewed".into()) };
    let ways: [fn(&mut Line) -> Effects; 4] = [
        // Its top is below the position.
        |line| checked(line, top(3), vec![entry(3)]),
        // Another publication stands at the position.
        |line| checked(line, top(6), vec![entry_of(3, 4, "anew"), entry(5), entry(6)]),
        // One that comes is another one than is known.
        |line| arrives(line, entry_of(3, 4, "anew")),
        // The broker had one that it has no longer.
        |line| {
            assert!(arrive(line, 9).is_empty());
            checked(line, top(7), (4..=7).map(entry).collect())
        },
    ];
    for (way, goes_back) in ways.into_iter().enumerate() {
        let mut line = at(3);
        assert_eq!(arrive(&mut line, 4), [4]);
        line.checks = way < 2;
        let effects = goes_back(&mut line);
        assert_eq!((effects.gap, effects.deliver.len()), (Some(Cause::Rewind), 0), "{way}");
        let Some(Query::Renew(epoch)) = query(&mut line, Need::Nothing, false) else { panic!() };
        assert!(epoch == LIFE.into() && !line.is_settled());
        assert!(arrive(&mut line, 5).is_empty());
        let effects = answered(&mut line, renewed.clone(), vec![entry(2)]);
        assert!(effects.gap.is_none() && line.at() == Some(&renewed), "{way}");
    }
}

#[test]
fn a_publication_where_the_broker_had_none_shows_that_the_stream_went_back() {
    let mut line = Line::new(0);
    line.listen();
    assert!(query(&mut line, Need::Position, false).is_some());
    answered(&mut line, top(5), Vec::new());
    // A late copy is no proof; the publication in the history is one.
    assert!(arrive(&mut line, 5).is_empty());
    let mut again = at(5);
    again.mark = None;
    again.clear_window();
    assert!(checked(&mut line, top(5), Vec::new()).gap.is_none());
    again.checks = true;
    let effects = checked(&mut again, top(6), vec![entry(5), entry(6)]);
    assert_eq!(effects.gap, Some(Cause::Rewind));
}

#[test]
fn a_broker_that_cannot_renew_is_read_again() {
    let mut line = at(3);
    line.checks = true;
    assert_eq!(checked(&mut line, top(2), vec![entry(2)]).gap, Some(Cause::Rewind));
    assert!(matches!(query(&mut line, Need::Nothing, false), Some(Query::Renew(_))));
    line.query_failed(false);
    assert!(matches!(query(&mut line, Need::Nothing, false), Some(Query::Renew(_))));
    line.query_failed(true);
    assert!(matches!(query(&mut line, Need::Nothing, false), Some(Query::Read(_))));
    answered(&mut line, top(2), vec![entry(2)]);
    assert!(line.is_settled() && line.at() == Some(&top(2)));
}

#[test]
fn a_position_is_checked_after_each_interruption() {
    let mut line = at(3);
    line.lose(Link::Off);
    assert!(query(&mut line, Need::Position, false).is_none());
    line.listen();
    assert!(!line.is_settled());
    // It may follow another publication than the third that is known.
    assert!(arrive(&mut line, 4).is_empty());
    let effects = checked(&mut line, top(5), vec![entry(3), entry(4), entry(5)]);
    assert_eq!((offsets(&effects), effects.gap), (vec![4, 5], None));
    assert!(line.is_settled());
}

#[test]
fn behind_an_interruption_a_position_without_its_publication_is_a_gap() {
    let after = |interrupted: bool| {
        let mut line = at(3);
        if interrupted {
            line.lose(Link::Begun);
            line.listen();
        }
        line.check();
        checked(&mut line, top(5), vec![entry(4), entry(5)]).gap
    };
    assert_eq!((after(true), after(false)), (Some(Cause::Trimmed), None));
}

#[test]
fn a_quiet_channel_is_checked() {
    let mut line = at(3);
    assert!(!line.is_due(Millis(29_999), 30_000) && line.is_due(Millis(30_000), 30_000));
    line.check();
    assert!(!line.is_settled());
    let Some(Query::Read(_)) = query(&mut line, Need::Nothing, false) else { panic!() };
    line.answered(Millis(30_000), top(3), vec![entry(3)], LIMIT, KEPT);
    assert!(line.is_settled() && !line.is_due(Millis(59_999), 30_000));
}

#[test]
fn many_missed_publications_take_several_reads() {
    let mut line = at(1);
    line.checks = true;
    let last = CHECKED_MAX as u64;
    let effects = checked(&mut line, top(last + 5), (1..=last).map(entry).collect());
    assert_eq!((effects.deliver.len(), effects.gap), (CHECKED_MAX - 1, None));
    assert!(!line.is_settled() && line.window_len() == KEPT);
    let effects = checked(&mut line, top(last + 5), (last..=last + 5).map(entry).collect());
    assert!(effects.deliver.len() == 5 && line.is_settled());
}

#[test]
fn recoveries_are_answered_from_the_window() {
    let mut line = at(3);
    (4..=7).for_each(|offset| assert_eq!(arrive(&mut line, offset), [offset]));
    assert_eq!(missed(&line, since(5)), Some(vec![6, 7]));
    assert_eq!((missed(&line, since(7)), missed(&line, since(8))), (Some(vec![]), None));
    assert_eq!(missed(&line, Since { offset: 5, epoch: "another".into() }), None);
    assert_eq!(missed(&line, Since { offset: 6, epoch: CompactString::default() }), Some(vec![7]));
    // One that is older needs a read: of all that a recovery can use.
    assert!(matches!(line.missed(&since(1), LIMIT), Missed::Unread));
    let Some(Query::Read(page)) = query(&mut line, Need::Missed, true) else { panic!() };
    assert!(page.reverse && page.limit == LIMIT && line.is_settled());
    assert_eq!(arrive(&mut line, 8), [8]);
    let effects = answered(&mut line, top(7), (2..=7).rev().map(entry).collect());
    assert!(effects.deliver.is_empty() && effects.gap.is_none());
    assert_eq!(missed(&line, since(1)), Some((2..=8).collect()));
    assert_eq!(missed(&line, since(0)), None);
    assert!(line.window_len() == 7 && line.take_unfiled() == 7);
    // What is given up for others can be read again.
    assert!(line.shed_oldest() && matches!(line.missed(&since(1), LIMIT), Missed::Unread));
    line.expire(Millis(60_000), 60_000);
    assert_eq!((line.window_len(), line.window_bytes()), (0, 0));
    assert!(matches!(line.missed(&since(7), LIMIT), Missed::Unread));
}

#[test]
fn what_the_broker_still_keeps_is_read_once() {
    let ttl_ms = 60_000;
    let mut line = at(3);
    line.expire(Millis(ttl_ms), ttl_ms);
    assert!(matches!(line.missed(&since(1), LIMIT), Missed::Unread));
    let Some(Query::Read(page)) = query(&mut line, Need::Missed, true) else { panic!() };
    assert!(page.reverse);
    let entries = [3, 2, 1].map(entry).into();
    line.answered(Millis(ttl_ms), top(3), entries, LIMIT, KEPT);
    line.expire(Millis(ttl_ms), ttl_ms);
    assert_eq!(missed(&line, since(1)), Some(vec![2, 3]));
    line.expire(Millis(2 * ttl_ms), ttl_ms);
    assert_eq!(line.window_len(), 0);
}

#[test]
fn an_answer_from_before_the_window_does_not_make_it_whole() {
    let mut line = at(4);
    line.clear_window();
    let Some(Query::Read(page)) = query(&mut line, Need::Missed, true) else { panic!() };
    assert!(page.reverse);
    // Two more come meanwhile, and the first of them gives up its room.
    assert_eq!((arrive(&mut line, 5), arrive(&mut line, 6)), (vec![5], vec![6]));
    assert!(line.shed_oldest());
    let whole = |newest: u64| (1..=newest).rev().map(entry).collect::<Vec<_>>();
    assert!(answered(&mut line, top(4), whole(4)).gap.is_none());
    assert!(matches!(line.missed(&since(3), LIMIT), Missed::Unread));
    let Some(Query::Read(_)) = query(&mut line, Need::Missed, true) else { panic!() };
    assert!(answered(&mut line, top(6), whole(6)).gap.is_none());
    assert_eq!(missed(&line, since(3)), Some(vec![4, 5, 6]));
}

#[test]
fn the_latest_publication_is_enough_for_some() {
    let mut line = at(3);
    let latest = |line: &Line, since: Since| match line.latest(&since) {
        Missed::All(list) => Some(list.len()),
        Missed::Gone => None,
        Missed::Unread => panic!("a read is needed"),
    };
    assert_eq!((latest(&line, since(1)), latest(&line, since(3))), (Some(1), Some(0)));
    line.clear_window();
    assert!(matches!(line.latest(&since(1)), Missed::Unread));
    let line = at(0);
    assert_eq!(latest(&line, since(0)), None);
}

#[test]
fn a_line_behind_a_client_is_held_against_the_broker_once() {
    let mut line = at(3);
    let sent = line.reads_sent();
    let lags = |line: &Line, offset, sent| line.may_lag(&since(offset), sent);
    assert_eq!([lags(&line, 3, sent), lags(&line, 5, sent)], [false, true]);
    assert!(!line.may_lag(&Since { epoch: "another".into(), ..since(5) }, sent));
    line.check();
    // Publications that are late are read. A client that has come before the read was sent needs no other one.
    let effects = checked(&mut line, top(4), vec![entry(3), entry(4)]);
    assert_eq!((offsets(&effects), effects.gap), (vec![4], None));
    assert_eq!([lags(&line, 5, sent), lags(&line, 5, line.reads_sent())], [false, true]);
    assert_eq!(missed(&line, since(5)), None);
    // A read without an answer shows nothing.
    let sent = line.reads_sent();
    line.check();
    assert!(query(&mut line, Need::Nothing, false).is_some());
    line.query_failed(false);
    assert!(lags(&line, 5, sent));
}

#[test]
fn held_publications_are_bounded() {
    let mut line = at(3);
    let large = "x".repeat(HELD_BYTES_MAX / 2);
    let held = |offset| entry_of(offset - 1, offset, &large);
    assert!(arrives(&mut line, held(8)).gap.is_none());
    assert!(query(&mut line, Need::Nothing, false).is_some());
    assert_eq!(arrives(&mut line, held(9)).gap, Some(Cause::Lag));
    assert!(line.held == 0 && !line.is_settled());
    // The answer may be older than what was dropped: the position is checked once more.
    answered(&mut line, top(7), vec![entry(7)]);
    assert!(!line.is_settled());
    let effects = checked(&mut line, top(9), vec![entry(7), held(8), held(9)]);
    assert_eq!((offsets(&effects), line.is_settled()), (vec![8, 9], true));
}

#[test]
fn patches_build_on_what_all_subscribers_have() {
    let mut line = at(3);
    let base = |effects: &Effects| effects.deliver[0].base.as_ref().map(Record::offset);
    assert_eq!(base(&arrives(&mut line, entry(4))), None);
    assert_eq!(base(&arrives(&mut line, entry(5))), Some(4));
    line.arrive(Millis(0), None, entry_of(0, 0, "bare"), KEPT);
    assert_eq!(base(&arrives(&mut line, entry(6))), None);
    assert_eq!(base(&arrives(&mut line, entry(7))), Some(6));
}
