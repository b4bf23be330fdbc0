//! Values to bytes and back, by rkyv: always validated, never larger than a stated limit.
//!
//! Bytes from outside have any alignment, so they are copied once; nothing here is on the packet
//! path.

use rkyv::Archive;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use thiserror::Error;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// More bytes than such a value can have.
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooLong {
        /// What came.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Of another version of this program.
    #[error(
        "it has format version {found}, this build reads {expected}: all nodes must be of one \
         version"
    )]
    Version {
        /// What it says.
        found: u8,
        /// What is read.
        expected: u8,
    },
    /// Not a valid archive.
    #[error("not a valid archive: {0}")]
    Archive(String),
    /// A part of it is beyond its limit.
    #[error("{what}: {count} is beyond the limit of {limit}")]
    Limit {
        /// Which part.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A part of it contradicts another.
    #[error("it contradicts itself: {0}")]
    Inconsistent(String),
}

/// The bytes of a value.
///
/// # Panics
/// If memory runs out: nothing else can fail.
pub fn encode<T>(value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    match rkyv::to_bytes::<rancor::Error>(value) {
        Ok(bytes) => bytes.into_vec(),
        Err(error) => panic!("a value in memory can always be encoded: {error}"),
    }
}

/// The same behind a byte that says which version of its form it is.
///
/// # Panics
/// If memory runs out: nothing else can fail.
pub fn encode_as<T>(version: u8, value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let mut bytes = encode(value);
    bytes.insert(0, version);
    bytes
}

/// What [`encode_as`] made, of just this version.
///
/// # Errors
/// If they are of another version, too many, or spell none.
pub fn decode_as<T>(version: u8, bytes: &[u8], limit: usize) -> Result<T, DecodeError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>,
{
    match bytes.split_first() {
        Some((found, body)) if *found == version => decode(body, limit),
        Some((found, _)) => Err(DecodeError::Version { found: *found, expected: version }),
        None => Err(DecodeError::Inconsistent("it is empty".to_owned())),
    }
}

/// The value that these bytes spell.
///
/// # Errors
/// If they are too many or spell none.
pub fn decode<T>(bytes: &[u8], limit: usize) -> Result<T, DecodeError>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>,
{
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { bytes: bytes.len(), limit });
    }
    let mut aligned: AlignedVec = AlignedVec::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<T, rancor::Error>(&aligned)
        .map_err(|error| DecodeError::Archive(error.to_string()))
}

/// Holds a count to its limit.
///
/// # Errors
/// If it is larger.
pub fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), DecodeError> {
    if count > limit {
        return Err(DecodeError::Limit { what, count, limit });
    }
    Ok(())
}
