//! Metadata and control messages as bytes: serde and bincode, behind this module alone.
//!
//! One fixed configuration for the whole project: little-endian, integers at their full width, and a
//! limit of [`MAX_LEN`] bytes on what is encoded and on what a decoder will allocate for. Nothing else
//! of ours names bincode, so that it can be replaced here.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one message: what fits a frame's body.
pub const MAX_LEN: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_LEN>> = bincode::config::standard()
    .with_fixed_int_encoding()
    .with_limit::<MAX_LEN>();

/// Why a value is not a message, or bytes are not a value.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// serde or bincode could not write the value.
    #[error("value of type {type_name} cannot be encoded: {source}")]
    Encode {
        /// The Rust type.
        type_name: &'static str,
        /// bincode's reason.
        source: Box<bincode::error::EncodeError>,
    },
    /// The bytes do not hold a value of this type.
    #[error("{len} bytes are no message of type {type_name}: {source}")]
    Decode {
        /// The Rust type.
        type_name: &'static str,
        /// Bytes given.
        len: usize,
        /// bincode's reason.
        source: Box<bincode::error::DecodeError>,
    },
    /// More bytes than a message may have.
    #[error("message of type {type_name} with {len} bytes, more than {MAX_LEN}")]
    Oversized {
        /// The Rust type.
        type_name: &'static str,
        /// Bytes it has.
        len: usize,
    },
    /// The value ended before the bytes did.
    #[error("message of type {type_name} followed by {extra} bytes that do not belong to it")]
    Trailing {
        /// The Rust type.
        type_name: &'static str,
        /// Bytes left over.
        extra: usize,
    },
}

/// The bytes of `value`.
///
/// # Errors
/// [`CodecError::Oversized`] above [`MAX_LEN`]; [`CodecError::Encode`] if serde refuses the value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let type_name = short_name::<T>();
    let bytes = bincode::serde::encode_to_vec(value, CONFIG).map_err(|e| CodecError::Encode {
        type_name,
        source: Box::new(e),
    })?;
    if bytes.len() > MAX_LEN {
        return Err(CodecError::Oversized {
            type_name,
            len: bytes.len(),
        });
    }
    Ok(bytes)
}

/// The value that `bytes`, all of them, hold.
///
/// # Errors
/// Any of [`CodecError`] but [`CodecError::Encode`]. Hostile bytes cost a bounded amount of memory: serde
/// sets aside at most 1 MiB for each collection that is open at a time, whatever length it claims.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let type_name = short_name::<T>();
    if bytes.len() > MAX_LEN {
        return Err(CodecError::Oversized {
            type_name,
            len: bytes.len(),
        });
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|e| CodecError::Decode {
            type_name,
            len: bytes.len(),
            source: Box::new(e),
        })?;
    if used < bytes.len() {
        return Err(CodecError::Trailing {
            type_name,
            extra: bytes.len() - used,
        });
    }
    Ok(value)
}

/// The type's name without its path.
fn short_name<T>() -> &'static str {
    let full = core::any::type_name::<T>();
    full.rsplit("::").next().unwrap_or(full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Message {
        Empty,
        Pair(u32, i64),
        Named {
            name: String,
            bytes: Vec<u8>,
            when: Option<u64>,
        },
        List(Vec<(u16, String)>),
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Empty),
            any::<(u32, i64)>().prop_map(|(a, b)| Message::Pair(a, b)),
            (
                ".{0,40}",
                proptest::collection::vec(any::<u8>(), 0..200),
                any::<Option<u64>>()
            )
                .prop_map(|(name, bytes, when)| Message::Named { name, bytes, when }),
            proptest::collection::vec((any::<u16>(), ".{0,9}"), 0..30).prop_map(Message::List),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(m in message()) {
            let bytes = encode(&m).unwrap();
            prop_assert_eq!(decode::<Message>(&bytes).unwrap(), m);
            for cut in 0..bytes.len() {
                prop_assert!(decode::<Message>(&bytes[..cut]).is_err());
            }
            let mut longer = bytes;
            longer.push(0);
            let trailing = matches!(decode::<Message>(&longer), Err(CodecError::Trailing { extra: 1, .. }));
            prop_assert!(trailing);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode::<Message>(&bytes);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error() {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        bytes.resize(64, b'a');
        assert!(matches!(
            decode::<Message>(&bytes),
            Err(CodecError::Decode { len: 64, .. })
        ));
        assert!(matches!(
            decode::<Vec<u8>>(&vec![0; MAX_LEN + 1]),
            Err(CodecError::Oversized { .. })
        ));
        assert!(encode(&vec![0u8; MAX_LEN]).is_err());
    }
}
