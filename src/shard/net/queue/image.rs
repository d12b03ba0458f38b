//! The byte form of a send queue: the frames by number, so that one which waits for many connections is in
//! an image once.

use super::{Kind, SendQueue, SendQueues, Waiting};
use crate::base::image::{Broken, Durable, ImageReader, ImageWriter, Tick, durable_enum};
use crate::shard::net::record::NONE;

durable_enum!(Kind { Kept = 0, Oldest = 1, OldestFull = 2, OldestPatch = 3 });

impl Durable for Waiting {
    fn write(&self, out: &mut ImageWriter) {
        let Self { frame, channel, messages, kind } = self;
        out.field(frame);
        // None is 0.
        out.field(&channel.wrapping_sub(NONE));
        out.field(messages);
        out.field(kind);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let frame = from.field("Waiting.frame")?;
        let channel: u32 = from.field("Waiting.channel")?;
        Ok(Self {
            frame,
            channel: channel.wrapping_add(NONE),
            messages: from.field("Waiting.messages")?,
            kind: from.field("Waiting.kind")?,
        })
    }
}

impl Durable for SendQueue {
    fn write(&self, out: &mut ImageWriter) {
        let Self { frames, in_flight, skip, bytes: _, blocked_tick, messages } = self;
        debug_assert_eq!(*in_flight, 0, "a driver has frames");
        out.field(frames);
        out.field(skip);
        out.field(&blocked_tick.map(Tick));
        out.field(messages);
    }

    fn read(from: &mut ImageReader<'_>) -> Result<Self, Broken> {
        let frames: std::collections::VecDeque<Waiting> = from.field("SendQueue.frames")?;
        let skip = from.field("SendQueue.skip")?;
        let blocked: Option<Tick> = from.field("SendQueue.blocked_tick")?;
        let messages = from.field("SendQueue.messages")?;
        let first = frames.front().map_or(0, |first| first.frame.len());
        if skip > 0 && skip >= first {
            return Err(Broken::Value("a send queue"));
        }
        let bytes = frames.iter().map(|waiting| waiting.frame.len()).sum::<usize>() - skip;
        let blocked_tick = blocked.map(|tick| tick.0);
        Ok(Self { frames, in_flight: 0, skip, bytes, blocked_tick, messages })
    }
}

impl SendQueues {
    /// Takes a queue that was read over. Its place.
    pub(crate) fn put(&mut self, queue: SendQueue) -> u32 {
        self.bytes += queue.bytes as u64;
        self.boxes.push(queue);
        (self.boxes.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::form::Form;
    use crate::base::frame::SharedFrame;
    use crate::base::time::Millis;
    use crate::shard::net::queue::Droppable;

    #[test]
    fn a_queue_goes_on_where_it_was() {
        let shared = SharedFrame::new(&[9; 500]);
        let mut queues = SendQueues::default();
        let mut places = Vec::new();
        for of in 0..3u32 {
            let mut at = NONE;
            queues.push(&mut at, SharedFrame::part(b"head"), None);
            let droppable = Droppable { channel: of, messages: 2, kind: Kind::OldestFull };
            queues.push(&mut at, shared.clone(), Some(droppable));
            queues.push_message(&mut at, b"{}", Form::JSON, false, &mut Vec::new());
            queues.advance(at, of as usize);
            queues.get_mut(at).unwrap().blocked_tick = Some(of).filter(|of| *of > 0);
            places.push(at);
        }
        let write = |queues: &SendQueues| {
            let mut out = ImageWriter::new(Millis(0));
            places
                .iter()
                .for_each(|at| out.record(2, |out| out.field(&queues.boxes[*at as usize])));
            out.finish()
        };
        let image = write(&queues);
        assert!(image.len() < 700, "the shared frame is there once: {}", image.len());
        let mut from = ImageReader::new(&image, Millis(0)).unwrap();
        let mut again = SendQueues::default();
        while from.next_record().unwrap().is_some() {
            let queue = SendQueue::read(&mut from).unwrap();
            again.put(queue);
        }
        assert_eq!(write(&again), image);
        assert_eq!((again.bytes(), again.in_use()), (queues.bytes(), 3));
        // What is dropped, joined and skipped is the same.
        for at in places {
            assert_eq!(again.drop_channel(at, at), queues.drop_channel(at, at));
            let (of, same) = (again.get(at).unwrap(), queues.get(at).unwrap());
            assert_eq!((of.bytes(), of.unsent().1), (same.bytes(), same.unsent().1));
            let [mut a, mut b] = [at, at];
            again.push_message(&mut a, b"{}", Form::JSON, false, &mut Vec::new());
            queues.push_message(&mut b, b"{}", Form::JSON, false, &mut Vec::new());
            let bytes = |queues: &SendQueues| {
                let frames = queues.boxes[at as usize].frames.iter();
                frames.map(|waiting| waiting.frame.bytes().to_vec()).collect::<Vec<_>>()
            };
            assert_eq!(bytes(&again), bytes(&queues));
        }
    }
}
