//! Secrets in files, which orchestrators mount: a variable with `_FILE` at the end of its name has the path.

use std::{fs::File, io::Read, path::Path};

use secrecy::SecretString;

/// End of the name of a variable that names a file.
pub(super) const SUFFIX: &str = "_FILE";
/// Largest file, in bytes: a mistake such as a device or a log must not fill the memory.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads a secret from a file, without one line end at its end.
///
/// # Errors
/// Describes, with the path, a file that cannot be read, is too large, is no text, or is empty.
pub(crate) fn read(path: &Path) -> Result<SecretString, String> {
    let failed = |what: String| format!("file {}: {what}", path.display());
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(|cause| failed(format!("cannot be read: {cause}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(format!("is larger than {MAX_BYTES} bytes")));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() { Err(failed("is empty".to_owned())) } else { Ok(SecretString::from(line)) }
}
