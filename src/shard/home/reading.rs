//! Reading at a channel's home: missed publications, history, presence. Results are encoded here, and cut to
//! the room that the client has for them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use compact_str::CompactString;

use super::Home;
use super::answers::Asked;
use super::seam::stream_options;
use crate::base::form::Form;
use crate::base::frame::SharedFrame;
use crate::base::id::ShardId;
use crate::base::info::ClientInfo;
use crate::base::tags::Tags;
use crate::hub::broker::Entry;
use crate::hub::delta::{self, Patched, Patcher};
use crate::hub::history::{Page, Position, Published, Record, Recovered, Since, Unrecoverable};
use crate::proto::client::{self, DataForm, Encoding, ErrorCode, Publication, Push, info_is_json};
use crate::proto::framing;
use crate::shard::codec::Codec;
use crate::shard::context::Cx;
use crate::shard::mail::post::Post;
use crate::shard::mail::{Answer, Mail, Read, Reading, Recover, Recovery};

impl Home {
    /// The publications that a subscriber missed, encoded for it.
    pub(super) fn recover(&mut self, cx: &Cx, at: u32, form: Form, recover: &Recover) -> Recovery {
        let now = cx.now;
        let limit = cx.client.recovery_publications_max;
        let Recover { since, latest, filter, bytes_max, as_pushes } = recover;
        cx.counters().recoveries.add(1);
        let channel = CompactString::new(if *as_pushes { self.channels.name(at) } else { "" });
        let Some(stream) = self.channels.stream(now, at) else { return Recovery::Failed };
        let recovered = match latest {
            // A poll comes back again and again: at its own position it lacks nothing.
            true if form.is_poll() && stream.is_at(since) => Recovered::Yes(0..0),
            true => stream.recover_latest(since),
            false => stream.recover(since, limit),
        };
        let Recovered::Yes(places) = recovered else { return Recovery::Failed };
        let top = stream.position();
        let asked = Asked::of(at, form, &top, &places);
        let asked = asked.filter(|_| filter.is_none() && !as_pushes);
        let known = asked.as_ref().and_then(|asked| self.answers.get(asked));
        let list = match known {
            Some(list) => Some(list),
            None => {
                let takes = |record: &&Record| {
                    let tags = Tags::packed(record.published().tags);
                    filter.as_ref().is_none_or(|filter| filter.matches(tags))
                };
                let records: Vec<&Record> = stream.range(places.clone()).filter(takes).collect();
                let checked = check_list(form, &records, *bytes_max);
                // Of what a filter lets through one is no base for the next.
                let patches = form.takes_patches() && filter.is_none() && !as_pushes;
                let encoded = match checked {
                    Err(fault) => Err(fault),
                    Ok(_) if records.is_empty() => Ok(None),
                    Ok(_) if *as_pushes => Ok(Some(encode_pushes(&channel, form, &records))),
                    Ok(_) if patches => Ok(self.encode_patched(cx, at, form, places)),
                    Ok(encoding) => {
                        let full = DataForm::full(form);
                        let publications = records.iter().map(|record| publication_of(record));
                        let publications = publications.map(|of| Publication { form: full, ..of });
                        Ok(Some(encode_list(encoding, publications)))
                    }
                };
                match encoded {
                    Ok(list) => {
                        if let (Some(asked), Some(list)) = (asked, &list) {
                            self.answers.insert(asked, list.clone());
                        }
                        list
                    }
                    Err(ListFault::TooMuch) => return Recovery::Failed,
                    Err(ListFault::Unfit) => return Recovery::Unfit,
                }
            }
        };
        if list.as_ref().is_some_and(|list| list.len() > *bytes_max) {
            return Recovery::Failed;
        }
        cx.counters().recovered.add(1);
        // The client comes to the top by what it gets.
        Recovery::Done { publications: list, offset: since.offset }
    }

    /// The publications at `places` of a stream for a form that takes patches: each is patched from the one
    /// before it (client protocol, 21.2). What the turn has no budget for goes in full.
    fn encode_patched(
        &mut self,
        cx: &Cx,
        at: u32,
        form: Form,
        places: Range<usize>,
    ) -> Option<SharedFrame> {
        let stream = self.channels.stream(cx.now, at)?;
        let bytes = stream.range(places.clone()).map(|record| record.data().len()).sum();
        if cx.has_room_for_patches(bytes) {
            let over_budget = self.channels.make_patches(at, places.clone(), &mut self.patcher);
            cx.counters().patches_over_budget.add(over_budget as u64);
        }
        let stream = self.channels.stream(cx.now, at)?;
        let full = DataForm::full(form);
        let first = places.start;
        let publications = places.clone().zip(stream.range(places)).map(|(place, record)| {
            let publication = publication_of(record);
            let patch = stream.patch(place).filter(|_| place > first);
            match patch.filter(|patch| form.is_protobuf() || delta::is_text(patch)) {
                Some(data) => Publication { data, form: DataForm::Patch, ..publication },
                None => Publication { form: full, ..publication },
            }
        });
        Some(encode_list(Encoding::from(form), publications))
    }

    /// Answers a request for presence or history, or drops the history.
    pub(super) fn read(
        &mut self,
        cx: &Cx,
        from: ShardId,
        read: &Read,
        out: &mut Post,
        codec: &mut Codec,
    ) {
        let answer = match &read.what {
            Reading::Presence | Reading::Here => self.read_presence(read, codec),
            Reading::PresenceStats => {
                let members = self.channels.find(&read.channel, read.hash);
                let members = members.and_then(|at| self.channels.members(at));
                members.map_or(Answer::PresenceStats(0, 0), |members| {
                    Answer::PresenceStats(members.clients(), members.users())
                })
            }
            Reading::Subscribers => {
                let at = self.channels.find(&read.channel, read.hash);
                Answer::Subscribers(at.map_or(0, |at| self.channels.subscribers(at)))
            }
            Reading::History(page) => self.read_history(cx, read, page, codec),
            Reading::Drop => {
                if let Some(at) = self.channels.find(&read.channel, read.hash) {
                    self.channels.drop_history(at);
                }
                Answer::Done
            }
        };
        cx.counters().reads.add(1);
        out.send(cx, from, Mail::Answer { asker: read.asker, answer });
    }

    fn read_presence(&self, read: &Read, codec: &mut Codec) -> Answer {
        let members = self.channels.find(&read.channel, read.hash);
        let members = members.and_then(|at| self.channels.members(at));
        encode_presence(read, members.into_iter().flat_map(|members| members.present()), codec)
    }

    fn read_history(&mut self, cx: &Cx, read: &Read, page: &Page, codec: &mut Codec) -> Answer {
        let now = cx.now;
        let namespace = read.namespace;
        let options = stream_options(cx.channels_with(namespace).namespace(namespace));
        let at = self.channels.read(now, &read.channel, read.hash);
        let beginning = options.kept().then(|| self.channels.beginning(read.hash));
        let stream = at.and_then(|at| self.channels.stream(now, at));
        let position = stream.map(|stream| stream.position()).or(beginning);
        let Some(position) = position else {
            return Answer::failed(ErrorCode::NotAvailable, &read.channel);
        };
        let epoch = position.epoch.as_ref().map_or("", |epoch| epoch.as_str());
        let records = match stream {
            Some(stream) => stream.page(page),
            // Nothing is kept, and no record is made to say so.
            None => match &page.since {
                Some(since) if !since.epoch.is_empty() && since.epoch != epoch => {
                    Err(Unrecoverable)
                }
                _ => Ok(Vec::new()),
            },
        };
        let Ok(records) = records else {
            return Answer::failed(ErrorCode::UnrecoverablePosition, &read.channel);
        };
        let timed = records.into_iter().map(|record| (record, record.published().time_ms()));
        encode_history(read, &position, timed.collect(), codec)
    }
}

/// The present clients, from the packed infos.
fn encode_presence<'a>(
    read: &Read,
    present: impl Iterator<Item = Cow<'a, [u8]>>,
    codec: &mut Codec,
) -> Answer {
    // A list that is too long is found before it is written, and before its end.
    let mut bytes = 0;
    let mut fits = true;
    let mut infos = Vec::new();
    for info in present {
        let Some(entry) = ClientInfo::unpack(&info) else { continue };
        let parts = [entry.conn_info, entry.chan_info];
        bytes += entry.user.len() + 2 * entry.client.len();
        bytes += parts.iter().map(|part| part.len()).sum::<usize>();
        if bytes > read.bytes_max {
            return Answer::failed(ErrorCode::LimitExceeded, &read.channel);
        }
        fits &= info_is_json(&entry);
        infos.push(info);
    }
    if !fits && read.encoding == Encoding::Json {
        return Answer::Unfit;
    }
    codec.scratch.clear();
    let entries = infos.iter().filter_map(|info| ClientInfo::unpack(info));
    read.encoding.put_presence(&mut codec.scratch, entries);
    if codec.scratch.len() > read.bytes_max {
        return Answer::failed(ErrorCode::LimitExceeded, &read.channel);
    }
    Answer::Presence(SharedFrame::part(&codec.scratch))
}

/// A page of history with the time of each publication (0: none), cut to the room that the client has.
fn encode_history(
    read: &Read,
    position: &Position,
    records: Vec<(&Record, u64)>,
    codec: &mut Codec,
) -> Answer {
    let epoch = position.epoch.as_ref().map_or("", |epoch| epoch.as_str());
    if read.encoding == Encoding::Json && records.iter().any(|(r, _)| !r.published().is_json) {
        return Answer::Unfit;
    }
    // A page that doesn't fit is cut: the next request begins where this one ends.
    let mut bytes = 0;
    let fitting = records.into_iter().take_while(|(record, _)| {
        bytes += encoded_bytes(record);
        bytes <= read.bytes_max
    });
    let publications =
        fitting.map(|(record, time_ms)| Publication { time_ms, ..publication_of(record) });
    codec.scratch.clear();
    read.encoding.put_history(&mut codec.scratch, publications, epoch, position.offset);
    Answer::History(SharedFrame::part(&codec.scratch))
}

/// Who is present on all nodes, as a broker names them, or how many.
pub(super) fn presence(read: &Read, infos: &[Box<[u8]>], codec: &mut Codec) -> Answer {
    if matches!(read.what, Reading::Presence) {
        return encode_presence(read, infos.iter().map(|info| Cow::Borrowed(&**info)), codec);
    }
    let of = infos.iter().filter_map(|info| ClientInfo::unpack(info));
    let users: HashSet<&str> = of.map(|info| info.user).collect();
    Answer::PresenceStats(infos.len() as u32, users.len() as u32)
}

/// A page of history that a broker has read. Payloads have times in any case.
pub(super) fn history(
    read: &Read,
    top: &Position,
    entries: &[Entry],
    shows_times: bool,
    codec: &mut Codec,
) -> Answer {
    let Reading::History(page) = &read.what else { return Answer::Done };
    let Some(epoch) = &top.epoch else {
        return Answer::failed(ErrorCode::NotAvailable, &read.channel);
    };
    let is_other = |of: &Since| !of.epoch.is_empty() && of.epoch != epoch.as_str();
    if page.since.as_ref().is_some_and(is_other) {
        return Answer::failed(ErrorCode::UnrecoverablePosition, &read.channel);
    }
    let time_of = |entry: &Entry| if shows_times { entry.time_ms } else { 0 };
    let records = entries.iter().map(|entry| (&entry.record, time_of(entry)));
    encode_history(read, top, records.collect(), codec)
}

/// Publications that a subscriber missed, to be encoded for it.
#[derive(Clone, Copy)]
pub(super) struct MissedList<'a> {
    pub(super) channel: &'a str,
    pub(super) form: Form,
    pub(super) recover: &'a Recover,
}

impl MissedList<'_> {
    /// The result of a recovery with this list.
    pub(super) fn recovery(self, list: Option<SharedFrame>) -> Recovery {
        let Recover { bytes_max, since, .. } = self.recover;
        if list.as_ref().is_some_and(|list| list.len() > *bytes_max) {
            return Recovery::Failed;
        }
        Recovery::Done { publications: list, offset: since.offset }
    }

    /// The result of the recovery of these publications, which are consecutive: each may go as a patch to the
    /// one before it.
    pub(super) fn encode(self, cx: &Cx, records: Vec<&Record>, patcher: &mut Patcher) -> Recovery {
        let Self { channel, form, recover } = self;
        let takes = |record: &&Record| {
            let tags = Tags::packed(record.published().tags);
            recover.filter.as_ref().is_none_or(|filter| filter.matches(tags))
        };
        let records: Vec<&Record> = records.into_iter().filter(takes).collect();
        let list = match check_list(form, &records, recover.bytes_max) {
            Err(ListFault::TooMuch) => return Recovery::Failed,
            Err(ListFault::Unfit) => return Recovery::Unfit,
            Ok(_) if records.is_empty() => None,
            Ok(_) if recover.as_pushes => Some(encode_pushes(channel, form, &records)),
            Ok(encoding) => {
                let bytes = records.iter().map(|record| record.data().len()).sum();
                let patches = form.takes_patches() && recover.filter.is_none();
                let patches = patches && cx.has_room_for_patches(bytes);
                let patch_of =
                    |pair: &[&Record]| match patcher.patch(pair[0].data(), pair[1].data()) {
                        Patched::Patch(patch) if form.is_protobuf() || delta::is_text(&patch) => {
                            Some(patch)
                        }
                        _ => None,
                    };
                let patches: Vec<Option<Box<[u8]>>> = match patches {
                    true => std::iter::once(None).chain(records.windows(2).map(patch_of)).collect(),
                    false => vec![None; records.len()],
                };
                let full = DataForm::full(form);
                let publications = records.iter().zip(&patches).map(|(record, patch)| {
                    let publication = publication_of(record);
                    match patch {
                        Some(data) => Publication { data, form: DataForm::Patch, ..publication },
                        None => Publication { form: full, ..publication },
                    }
                });
                Some(encode_list(encoding, publications))
            }
        };
        self.recovery(list)
    }
}

/// The reason why a list can't be sent.
enum ListFault {
    /// It is longer than the queue of the client may be.
    TooMuch,
    /// Something in it can't be shown to JSON connections.
    Unfit,
}

/// The list of a subscribe result.
fn encode_list<'a>(
    encoding: Encoding,
    publications: impl Iterator<Item = Publication<'a>>,
) -> SharedFrame {
    let mut list = Vec::new();
    encoding.put_publications(&mut list, publications);
    SharedFrame::part(&list)
}

/// The encoding of a list that may be sent.
fn check_list(form: Form, records: &[&Record], bytes_max: usize) -> Result<Encoding, ListFault> {
    let encoding = Encoding::from(form);
    if encoding == Encoding::Json && records.iter().any(|r| !r.published().is_json) {
        return Err(ListFault::Unfit);
    }
    let bytes: usize = records.iter().map(|record| encoded_bytes(record)).sum();
    if bytes > bytes_max {
        return Err(ListFault::TooMuch);
    }
    Ok(encoding)
}

/// Publications as frames with one push each.
fn encode_pushes(channel: &str, form: Form, records: &[&Record]) -> SharedFrame {
    let (mut frames, mut message) = (Vec::new(), Vec::new());
    for record in records {
        message.clear();
        let push = Push::Publication(publication_of(record));
        client::put_push(&mut message, form, channel, &push);
        framing::put(&mut frames, form, &message);
    }
    SharedFrame::new(&frames)
}

/// A kept publication as clients get it.
fn publication_of(record: &Record) -> Publication<'_> {
    let Published { data, info, tags, .. } = record.published();
    Publication {
        data,
        info: ClientInfo::unpack(info),
        offset: record.offset(),
        tags: Tags::packed(tags),
        ..Publication::default()
    }
}

/// Bytes of a kept publication in an answer, about.
fn encoded_bytes(record: &Record) -> usize {
    record.bytes() + PUBLICATION_BYTES
}

/// Names and marks around a publication in JSON, about.
const PUBLICATION_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::home::driven::{Driven, with_history};

    fn text(answer: &Answer) -> String {
        match answer {
            Answer::Presence(body) | Answer::History(body) => {
                String::from_utf8_lossy(body.bytes()).into_owned()
            }
            Answer::Error(failure) => format!("{:?}", failure.code),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn presence_names_clients_and_counts_users() {
        let mut driven = Driven::with(with_history());
        assert_eq!(text(&driven.reads("news", Reading::PresenceStats)), "PresenceStats(0, 0)");
        driven.joins("news", 1, "ann");
        driven.joins("news", 2, "ann");
        driven.joins("news", 3, "bob");
        assert_eq!(text(&driven.reads("news", Reading::PresenceStats)), "PresenceStats(3, 2)");
        let presence = text(&driven.reads("news", Reading::Presence));
        assert!(["client-1", "client-2", "client-3"].iter().all(|of| presence.contains(of)));
    }

    #[test]
    fn history_is_read_by_pages_and_dropped() {
        let mut driven = Driven::with(with_history());
        (1..=3).for_each(|n| driven.publishes("news", &n.to_string()));
        driven.sent_to(1);
        let page = |limit, reverse| Reading::History(Page { since: None, limit, reverse });
        let first = text(&driven.reads("news", page(2, false)));
        assert!(first.contains(r#""data":1"#) && first.contains(r#""data":2"#), "{first}");
        assert!(!first.contains(r#""data":3"#) && first.contains(r#""offset":3"#));
        let latest = text(&driven.reads("news", page(1, true)));
        assert!(latest.contains(r#""data":3"#) && !latest.contains(r#""data":2"#));
        assert!(matches!(driven.reads("news", Reading::Drop), Answer::Done));
        let empty = text(&driven.reads("news", page(9, false)));
        assert!(!empty.contains("data") && empty.contains(r#""offset":3"#), "{empty}");
        assert_eq!(driven.cx.counters().reads.get(), 4);
    }

    #[test]
    fn a_channel_that_was_never_published_to_has_a_position_and_no_record() {
        let mut driven = Driven::with(with_history());
        let page = || Reading::History(Page::default());
        let first = text(&driven.reads("news", page()));
        assert_eq!(text(&driven.reads("news", page())), first);
        assert!(driven.home.is_empty());
        let mut without = Driven::with(Default::default());
        assert_eq!(text(&without.reads("news", page())), "NotAvailable");
    }
}
