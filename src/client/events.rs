//! Parses the server-sent events of a watch.

use crate::config::WATCH_EVENT_BYTES_MAX;

/// Assembles events from the pieces in which they arrive.
///
/// It supports what nodes send: `id` and `data` of one line each. Unlike a browser, it also reports an `id` without
/// `data`: a heartbeat, which tells from where to resume.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    /// The beginning of a line whose end has not arrived.
    unread: Vec<u8>,
    event: Event,
}

/// An event, or a heartbeat if it has no data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub id: Option<String>,
    pub data: Option<String>,
}

impl EventParser {
    /// Adds a piece, and returns the events that end in it.
    ///
    /// # Errors
    ///
    /// If an event is longer than [`WATCH_EVENT_BYTES_MAX`].
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, &'static str> {
        let mut events = Vec::new();
        let mut lines = piece.split(|byte| *byte == b'\n');
        // The part after the last line break, or the whole piece, is the beginning of a line.
        let rest = lines.next_back().unwrap_or_default();
        for line in lines {
            let line = [std::mem::take(&mut self.unread).as_slice(), line].concat();
            self.take_line(&String::from_utf8_lossy(&line), &mut events);
        }
        self.unread.extend_from_slice(rest);
        if self.unread.len() > WATCH_EVENT_BYTES_MAX {
            return Err("an event is too long");
        }
        Ok(events)
    }

    fn take_line(&mut self, line: &str, events: &mut Vec<Event>) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match name {
            "" if line.is_empty() => events.extend(Some(std::mem::take(&mut self.event)).filter(Event::is_any)),
            "id" => self.event.id = Some(value),
            "data" => self.event.data = Some(value),
            // Comments, and fields of later versions.
            _ => {}
        }
    }
}

impl Event {
    fn is_any(&self) -> bool {
        self.id.is_some() || self.data.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events do not depend on where the stream is cut into pieces.
    ///
    /// Method: cut a stream with every kind of line in two at each byte, and into single bytes.
    #[test]
    fn cuts_do_not_matter() {
        let text =
            "id: 3\ndata: {\"ü\":1}\n\n: heartbeat\n\n: heartbeat\nid: 7\n\nid: 8.0\r\ndata:x\r\n\r\ndata: end\n\n";
        let event =
            |id: Option<&str>, data: Option<&str>| Event { id: id.map(str::to_owned), data: data.map(str::to_owned) };
        let expected = [
            event(Some("3"), Some("{\"ü\":1}")),
            event(Some("7"), None),
            event(Some("8.0"), Some("x")),
            event(None, Some("end")),
        ];
        let read = |pieces: &[&[u8]]| {
            let mut parser = EventParser::default();
            pieces.iter().flat_map(|piece| parser.push(piece).unwrap()).collect::<Vec<_>>()
        };
        for cut in 0..=text.len() {
            let (first, second) = text.as_bytes().split_at(cut);
            assert_eq!(read(&[first, second]), expected, "cut at {cut}");
        }
        assert_eq!(read(&text.as_bytes().chunks(1).collect::<Vec<_>>()), expected);
    }
}
