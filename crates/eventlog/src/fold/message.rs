//! Numbers and control messages inside buffers.

/// Up to eight little-endian bytes at `offset`; bytes that are missing count as zero.
pub(super) fn word(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let bytes = bytes.get(offset..).unwrap_or_default();
    bytes[..bytes.len().min(len)]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The low half of an argument as a signed number.
pub(super) const fn int(argument: u64) -> i32 {
    (argument as u32).cast_signed()
}

/// The descriptors in control data: all `SCM_RIGHTS` messages, in order.
pub(super) fn passed_descriptors(mut control: &[u8]) -> Vec<i32> {
    const HEADER: usize = 16;
    const SOL_SOCKET: u64 = 1;
    const SCM_RIGHTS: u64 = 1;
    let mut found = Vec::new();
    while control.len() >= HEADER {
        let len = (word(control, 0, 8) as usize).clamp(HEADER, control.len());
        if word(control, 8, 4) == SOL_SOCKET && word(control, 12, 4) == SCM_RIGHTS {
            found.extend(
                control[HEADER..len]
                    .chunks_exact(4)
                    .map(|fd| int(word(fd, 0, 4))),
            );
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_found_among_other_messages() {
        let message = |len: u64, kind: u32, data: &[u8]| {
            let mut bytes = [
                &len.to_le_bytes()[..],
                &1u32.to_le_bytes(),
                &kind.to_le_bytes(),
                data,
            ]
            .concat();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        let control = [
            message(28, 2, &[9; 12]),
            message(24, 1, &[5, 0, 0, 0, 7, 0, 0, 0]),
            message(20, 1, &[8, 0, 0, 0]),
        ];
        assert_eq!(passed_descriptors(&control.concat()), [5, 7, 8]);
        assert_eq!(
            passed_descriptors(&message(u64::MAX, 1, &[3, 0, 0, 0, 0, 0, 0, 0])),
            [3, 0]
        );
        assert!(passed_descriptors(&[0; 15]).is_empty());
    }
}
