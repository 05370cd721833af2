//! Hash of what a program writes, compared in replay.

use eventlog::record::mix;

use crate::user;

/// Bytes that are taken at a time.
const BLOCK: usize = 1024;
/// Words that are taken side by side: a multiplication takes as long as four that do not wait for one another.
const LANES: usize = 4;
/// Pieces shorter than this are taken word by word.
const MIN_LANES: u64 = 128;

/// Goes on with a hash over one piece of memory; what cannot be read is left out.
pub(crate) fn piece(mut h: u64, at: u64, len: u64) -> u64 {
    let mut block = [0_u64; BLOCK / 8];
    let mut lanes = [h, !h, h.rotate_left(16), !h.rotate_left(16)];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(BLOCK as u64);
        let words = n.div_ceil(8) as usize;
        block[words - 1] = 0;
        if user::copy(block.as_mut_ptr() as u64, at + done, n).is_err() {
            break;
        }
        let mut left = &block[..words];
        if len >= MIN_LANES {
            let (rows, rest) = left.as_chunks::<LANES>();
            for row in rows {
                for (lane, word) in lanes.iter_mut().zip(row) {
                    *lane = mix(*lane, *word);
                }
            }
            left = rest;
        }
        for word in left {
            h = mix(h, *word);
        }
        done += n;
    }
    if len >= MIN_LANES {
        for lane in lanes {
            h = mix(h, lane);
        }
    }
    h
}
