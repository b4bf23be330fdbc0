//! Marks: small files that say, after a node's memory is gone, which cluster it belonged to.
//!
//! One line: the word `lineage` with the version of this form, and the lineage of the cluster,
//! 16 hexadecimal digits. Pure.

use thiserror::Error;

/// The first word.
const WORD: &str = "lineage";
/// The version of this form.
const VERSION: &str = "1";
/// Longest file.
pub(super) const MARK_BYTES_MAX: u64 = 256;

/// Why a file is no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MarkError {
    /// It is one of another version.
    #[error("it is a mark of another version")]
    Version,
    /// It is something else.
    #[error("it is no mark")]
    Nonsense,
}

/// The mark of a lineage.
#[must_use]
pub fn encode(lineage: u64) -> String {
    format!("{WORD}-{VERSION} {lineage:016x}\n")
}

/// The lineage that a mark names; never 0.
///
/// # Errors
/// If it is no mark of this version.
pub fn decode(bytes: &[u8]) -> Result<u64, MarkError> {
    let text = core::str::from_utf8(bytes).map_err(|_| MarkError::Nonsense)?;
    let (word, digits) = text.trim().split_once(' ').ok_or(MarkError::Nonsense)?;
    let version = word.strip_prefix(WORD).ok_or(MarkError::Nonsense)?;
    if version.strip_prefix('-') != Some(VERSION) {
        // The first marks had no version.
        let is_other = version.is_empty() || version.starts_with('-');
        return Err(if is_other { MarkError::Version } else { MarkError::Nonsense });
    }
    match u64::from_str_radix(digits, 16) {
        Ok(lineage) if lineage != 0 => Ok(lineage),
        _ => Err(MarkError::Nonsense),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_its_lineage_and_other_versions_are_told_from_nonsense() {
        for lineage in [1, 7, u64::MAX] {
            assert_eq!(decode(encode(lineage).as_bytes()), Ok(lineage));
        }
        for text in ["lineage 00000000000000ff", "lineage-2 ff", "lineage-11 ff", "lineage- ff"] {
            assert_eq!(decode(text.as_bytes()), Err(MarkError::Version), "{text}");
        }
        for text in ["", "lineage", "lineage-1", "lineage-1 0", "lineage-1 x", "lineages ff", "ff"]
        {
            assert_eq!(decode(text.as_bytes()), Err(MarkError::Nonsense), "{text}");
        }
    }
}
