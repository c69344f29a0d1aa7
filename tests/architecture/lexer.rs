//! Splits Rust into code, comments, literals and tokens.

pub(crate) struct Lexed {
    /// The text with blanks in place of comments and literals; byte offsets stay.
    pub(crate) code: String,
    /// Byte ranges.
    pub(crate) literals: Vec<(usize, usize)>,
    pub(crate) comments: Vec<(usize, usize)>,
}

/// Finds comments and literals, and blanks them. A literal keeps a quote as its first byte.
pub(crate) fn lex(text: &str) -> Lexed {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let (mut literals, mut comments) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let (end, first) = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                (bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length), b' ')
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => (end_of_block_comment(bytes, at), b' '),
            b'"' => (end_of_string(bytes, at), b'"'),
            b'\'' => match end_of_char(text, at) {
                Some(end) => (end, b'\''),
                None => {
                    at += 1;
                    continue;
                }
            },
            byte if is_word(byte) => {
                let length = bytes[at..].iter().position(|byte| !is_word(*byte)).unwrap_or(bytes.len() - at);
                let word = &bytes[at..at + length];
                let next = bytes.get(at + length);
                if matches!(word, b"r" | b"br" | b"cr") && matches!(next, Some(b'"' | b'#')) {
                    if let Some(end) = end_of_raw_string(bytes, at + length) {
                        (end, b'"')
                    } else {
                        at += length;
                        continue;
                    }
                } else if matches!(word, b"b" | b"c") && next == Some(&b'"') {
                    (end_of_string(bytes, at + length), b'"')
                } else {
                    at += length;
                    continue;
                }
            }
            _ => {
                at += 1;
                continue;
            }
        };
        match first {
            b' ' => comments.push((at, end)),
            b'"' => literals.push((at, end)),
            _ => {}
        }
        code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        code[at] = if first == b' ' { b' ' } else { b'"' };
        at = end;
    }
    Lexed { code: String::from_utf8_lossy(&code).into_owned(), literals, comments }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn end_of_block_comment(bytes: &[u8], open: usize) -> usize {
    let (mut depth, mut at) = (0usize, open);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn end_of_raw_string(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(at + hashes) != Some(&b'"') {
        return None;
    }
    let body = at + hashes + 1;
    let closes = |quote: usize| {
        bytes[quote] == b'"' && bytes[quote + 1..].iter().take(hashes).filter(|byte| **byte == b'#').count() == hashes
    };
    Some((body..bytes.len()).find(|quote| closes(*quote)).map_or(bytes.len(), |quote| quote + 1 + hashes))
}

/// The end of a character literal; `None` for a lifetime.
fn end_of_char(text: &str, open: usize) -> Option<usize> {
    let rest = &text[open + 1..];
    if rest.starts_with('\\') {
        return rest[2..].find('\'').map(|at| open + 1 + 2 + at + 1);
    }
    let first = rest.chars().next()?;
    rest[first.len_utf8()..].starts_with('\'').then(|| open + 1 + first.len_utf8() + 1)
}

/// What a literal says: quotes and escapes are removed.
pub(crate) fn literal_text(token: &str) -> String {
    let open = token.find('"').unwrap_or(0);
    let raw = token[..open].contains('r');
    let inner = token[open + 1..].trim_end_matches('#').trim_end_matches('"');
    if raw || !inner.contains('\\') {
        return inner.to_owned();
    }
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars().peekable();
    while let Some(char) = chars.next() {
        if char != '\\' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('\n') => while chars.next_if(|it| it.is_whitespace()).is_some() {},
            Some('n' | 'r' | 't') => out.push('\n'),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

/// The end of the block that opens at `open`.
pub(crate) fn end_of_block(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.as_bytes().iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Token<'a> {
    Word(&'a str),
    /// `::`
    Separator,
    Mark(u8),
}

/// The tokens of blanked code with their byte offsets. Lifetimes and numbers are left out.
pub(crate) fn tokens(code: &str) -> Vec<(usize, Token<'_>)> {
    let bytes = code.as_bytes();
    let mut found = Vec::with_capacity(code.len() / 6);
    let mut at = 0;
    let word_from = |at: usize| bytes[at..].iter().position(|byte| !is_word(*byte)).unwrap_or(bytes.len() - at);
    while at < bytes.len() {
        let byte = bytes[at];
        let length = if byte == b' ' || byte == b'\n' {
            1
        } else if is_word(byte) {
            let mut length = word_from(at);
            if &code[at..at + length] == "r"
                && bytes.get(at + 1) == Some(&b'#')
                && bytes.get(at + 2).is_some_and(|it| is_word(*it))
            {
                length = 2 + word_from(at + 2);
            }
            if !byte.is_ascii_digit() {
                found.push((at, Token::Word(&code[at..at + length])));
            }
            length
        } else if byte == b'\'' {
            1 + word_from(at + 1)
        } else if byte == b':' && bytes.get(at + 1) == Some(&b':') {
            found.push((at, Token::Separator));
            2
        } else {
            if byte.is_ascii_graphic() {
                found.push((at, Token::Mark(byte)));
            }
            1
        };
        at += length;
    }
    found
}
