//! WebSocket frames, as far as a subscriber needs them: ten thousand complete clients would cost more than the server.
//! Format: RFC 6455, section 5.2.

/// Longest accepted payload, in bytes; a notification has a few hundred.
const MAX_PAYLOAD_BYTES: u64 = 64 * 1024;
/// Marks the last frame of a message.
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Must be answered with a pong of the same payload.
    Ping,
    Pong,
    Close,
}

/// Assembles frames from bytes that arrive in arbitrary parts.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pending: Vec<u8>,
    read: usize,
}

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.read);
        self.read = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// A frame that the server must not send; nothing can be read after it.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, &[u8])>, String> {
        let rest = &self.pending[self.read..];
        let &[first, second, ..] = rest else { return Ok(None) };
        if second & MASKED != 0 {
            return Err("the server sent a masked frame".into());
        }
        let (length, head) = match second {
            126 => match rest.get(2..4) {
                Some(bytes) => (bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), 4),
                None => return Ok(None),
            },
            127 => match rest.get(2..10) {
                Some(bytes) => (bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        if length > MAX_PAYLOAD_BYTES {
            return Err(format!("a frame has {length} bytes"));
        }
        let end = self.read + head + usize::try_from(length).unwrap_or(usize::MAX / 2);
        if end > self.pending.len() {
            return Ok(None);
        }
        let kind = match first {
            0x81 => Kind::Text,
            0x88 => Kind::Close,
            0x89 => Kind::Ping,
            0x8a => Kind::Pong,
            other if other & FIN == 0 => return Err("the server sent a fragmented message".into()),
            other => return Err(format!("a frame starts with {other:#x}")),
        };
        let from = std::mem::replace(&mut self.read, end) + head;
        Ok(Some((kind, &self.pending[from..end])))
    }
}

/// A frame of a client. The mask is zero, since no proxy is involved that masking protects. Payloads are cut to 125 bytes;
/// a client sends no longer ones.
pub(super) fn client_frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let opcode = match kind {
        Kind::Text => 0x1,
        Kind::Close => 0x8,
        Kind::Ping => 0x9,
        Kind::Pong => 0xa,
    };
    let length = u8::try_from(payload.len()).unwrap_or(125);
    let mut frame = vec![FIN | opcode, MASKED | length, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame of a server.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(u8::try_from(short).unwrap()),
            long => {
                frame.push(126);
                frame.extend(u16::try_from(long).unwrap().to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    fn all(frames: &mut Frames) -> Vec<(Kind, Vec<u8>)> {
        std::iter::from_fn(|| frames.next().unwrap().map(|(kind, payload)| (kind, payload.to_vec()))).collect()
    }

    #[test]
    fn frames_of_a_subscriber_are_masked() {
        assert_eq!(client_frame(Kind::Pong, b"ab"), [0x8a, 0x82, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(client_frame(Kind::Text, &[b'x'; 200]).len(), 131);
    }

    #[test]
    fn frames_that_the_server_must_not_send_are_refused() {
        for (bytes, expected) in [
            (vec![0x81, 0x80, 0, 0, 0, 0], "masked"),
            (vec![0x01, 0], "fragmented"),
            (vec![0x82, 0], "starts with 0x82"),
            (vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 1], "65537 bytes"),
        ] {
            let mut frames = Frames::default();
            frames.push(&bytes);
            let error = frames.next().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let mut long = Frames::default();
        long.push(&[[0x81, 127].as_slice(), &3u64.to_be_bytes(), b"abc"].concat());
        assert_eq!(all(&mut long), [(Kind::Text, b"abc".to_vec())]);
    }

    proptest! {
        #[test]
        fn frames_are_assembled_from_any_parts(
            payloads in prop::collection::vec((0usize..4, prop::collection::vec(any::<u8>(), 0..400)), 0..8),
            cuts in prop::collection::vec(1usize..300, 1..40),
        ) {
            let kinds = [(0x81, Kind::Text), (0x89, Kind::Ping), (0x8a, Kind::Pong), (0x88, Kind::Close)];
            let bytes: Vec<u8> =
                payloads.iter().flat_map(|(kind, payload)| frame(kinds[*kind].0, payload)).collect();
            let (mut frames, mut found, mut rest) = (Frames::default(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                frames.push(part);
                found.extend(all(&mut frames));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let sent: Vec<_> = payloads.into_iter().map(|(kind, payload)| (kinds[kind].1, payload)).collect();
            prop_assert_eq!(found, sent);
        }
    }
}
