//! What lies behind a record's header: the payload of a system call.
//!
//! A *part* is a `u32` length and so many bytes, little-endian, without padding; a null pointer is a part
//! of length 0. The payload of a record whose kind is a system call is, in this order:
//!
//! 1. **Arguments and input**, if [`sysabi::Syscall::captures`] the result: the call's `arity` arguments as
//!    `u64`, then one part for each `In` and `InOut` buffer in the order of the arguments, as it was before
//!    the call. A buffer of more than [`MAX_INPUT`] bytes is cut to them. A string includes its zero.
//! 2. **Filled buffers**, if [`sysabi::Syscall::fills`] for the result: one part for each buffer in the order
//!    of the arguments, as the call left it. `OutVec` is one part with all its bytes; `OutMsg` is four: name,
//!    control data, flags (4 bytes, with [`MSG_PEEK`] added if the call asked for it), bytes.
//! 3. **Data** of a suppressed call: the bytes that were written, to the end of the payload, if they went to a
//!    file (behind the position, `u64`, if the call is one of [`POSITIONED`]); nothing if they went to a connection, since replay makes them again; for standard output and error
//!    instead the place in the container's order of such writes (`u64`). Of sendmsg it is instead a part with
//!    the control data, if there is any.
//!
//! A payload may be empty whatever the call: then nothing of this was recorded. Which buffers a call has
//! says [`sysabi::Syscall::shape`], for calls with commands only after the arguments are known.
//!
//! An `INTENT` announces the call whose number is its result. It has the arguments and the input if the row
//! captures, no filled buffers, then the bytes that are to be written. Writes to a channel inside the
//! container (pipe, UNIX socket, eventfd) have one, with all the bytes; their records have no data.
//!
//! **clone**, **clone3**, **fork** and **vfork**: `u32` number of the child's stream, then `u64` clone flags; the
//! same in their intents.
//!
//! Two calls say more than the application asked for: **accept** and **accept4** always record the peer's
//! name as the buffer of argument 1. **recvfrom** keeps its flags in the record's version.

use crate::record::{Header, kind};
use sysabi::{Arg, Class, Len, Syscall};

/// Most bytes of one input buffer that are kept.
pub const MAX_INPUT: usize = 64 << 10;
/// The flag of a receiving call that leaves the data where it was.
pub const MSG_PEEK: u32 = 2;
/// Calls that write at a position, which for a file is recorded before the bytes: pwrite64, pwritev, pwritev2.
pub const POSITIONED: [u16; 3] = [18, 296, 328];
/// A position that stands for the descriptor's own offset.
pub const AT_OFFSET: u64 = u64::MAX;
/// A position that stands for the file's end, wherever it is.
pub const AT_END: u64 = u64::MAX - 1;

/// clone, fork, vfork, clone3.
const MAKES_THREADS: [u16; 4] = [56, 57, 58, 435];

/// A payload taken apart; slices borrow from it, indices are those of the arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The arguments, if they were kept.
    pub args: Option<[u64; 6]>,
    /// What the call read.
    pub inputs: [Option<&'a [u8]>; 6],
    /// What the call filled.
    pub filled: [Option<&'a [u8]>; 6],
    /// Name, control data and flags of a message.
    pub message: Option<Message<'a>>,
    /// Bytes received in pieces, or written to a file or an internal channel.
    pub data: &'a [u8],
    /// Where in a file they were written, if the call said so: a byte, [`AT_OFFSET`] or [`AT_END`].
    pub position: Option<u64>,
    /// The thread that was made.
    pub child: Option<Child>,
}

/// What the record of a clone says of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its stream.
    pub stream: u32,
    /// The clone flags, if they were recorded.
    pub flags: Option<u64>,
}

/// The head of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// The other side's socket address.
    pub name: &'a [u8],
    /// Control messages.
    pub control: &'a [u8],
    /// The message's flags, MSG_PEEK among them if the call asked for it; 0 for a message sent.
    pub flags: u32,
}

/// Why bytes are not the payload of this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends inside something.
    Truncated {
        /// The call.
        nr: u16,
        /// Bytes missing.
        missing: usize,
    },
    /// A buffer is longer than its type.
    TooLong {
        /// The call.
        nr: u16,
        /// Index of the argument.
        argument: usize,
        /// The length found.
        len: usize,
        /// The most it can have.
        most: usize,
    },
    /// Bytes follow that belong to nothing.
    Excess {
        /// The call.
        nr: u16,
        /// Bytes left over.
        len: usize,
    },
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated { nr, missing } => {
                write!(f, "payload of call {nr} cut short, {missing} bytes missing")
            }
            Self::TooLong {
                nr,
                argument,
                len,
                most,
            } => {
                write!(
                    f,
                    "buffer {argument} of call {nr} has {len} bytes, more than {most}"
                )
            }
            Self::Excess { nr, len } => write!(
                f,
                "payload of call {nr} followed by {len} bytes that belong to nothing"
            ),
        }
    }
}

impl core::error::Error for Malformed {}

/// Takes the payload of a record of `row` apart; for an intent, `row` is the call it announces.
///
/// # Errors
/// [`Malformed`], naming what does not fit. Never allocates, never looks beyond `payload`.
pub fn parse<'a>(
    row: &Syscall,
    header: &Header,
    payload: &'a [u8],
) -> Result<Parsed<'a>, Malformed> {
    let mut parsed = Parsed::default();
    if payload.is_empty() {
        return Ok(parsed);
    }
    let intent = header.kind == kind::INTENT;
    let mut rest = Reader {
        nr: row.nr,
        bytes: payload,
    };
    if MAKES_THREADS.contains(&row.nr) {
        parsed.child = Some(parse_child(&mut rest)?);
    }
    let mut shape = row.args;
    if if intent {
        row.capture
    } else {
        row.captures(header.result)
    } {
        let mut args = [0; 6];
        for arg in args.iter_mut().take(row.arity()) {
            *arg = rest.u64()?;
        }
        parsed.args = Some(args);
        shape = row.shape(&args).unwrap_or(shape);
        for (i, arg) in shape.iter().enumerate().filter(|(_, arg)| arg.is_input()) {
            parsed.inputs[i] = Some(rest.buffer(i, *arg)?);
        }
    }
    if !intent && row.fills(header.result) {
        for (i, arg) in shape.iter().enumerate() {
            match arg {
                arg if arg.is_filled() => parsed.filled[i] = Some(rest.buffer(i, *arg)?),
                Arg::OutVec => parsed.data = rest.part()?,
                Arg::OutMsg => {
                    let (name, control, flags) =
                        (rest.part()?, rest.part()?, word(rest.part()?) as u32);
                    parsed.message = Some(Message {
                        name,
                        control,
                        flags,
                    });
                    parsed.data = rest.part()?;
                }
                _ => {}
            }
        }
    }
    if matches!(row.class, Class::Suppressed) && !rest.bytes.is_empty() {
        if shape.contains(&Arg::InMsg) && !intent {
            parsed.message = Some(Message {
                control: rest.part()?,
                ..Message::default()
            });
        } else {
            if POSITIONED.contains(&row.nr) && !intent {
                parsed.position = Some(rest.u64()?);
            }
            parsed.data = core::mem::take(&mut rest.bytes);
        }
    }
    if rest.bytes.is_empty() {
        Ok(parsed)
    } else {
        Err(Malformed::Excess {
            nr: row.nr,
            len: rest.bytes.len(),
        })
    }
}

/// The stream and the flags behind the header of a clone.
fn parse_child(rest: &mut Reader<'_>) -> Result<Child, Malformed> {
    let stream = rest.u32()?;
    let flags = if rest.bytes.is_empty() {
        None
    } else {
        Some(rest.u64()?)
    };
    Ok(Child { stream, flags })
}

/// The bytes not yet taken.
struct Reader<'a> {
    nr: u16,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.bytes.split_at_checked(n) else {
            return Err(Malformed::Truncated {
                nr: self.nr,
                missing: n - self.bytes.len(),
            });
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(word(self.take(4)?) as u32)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(word(self.take(8)?))
    }

    fn part(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn buffer(&mut self, argument: usize, arg: Arg) -> Result<&'a [u8], Malformed> {
        let part = self.part()?;
        if let Arg::In(Len::Fixed(most))
        | Arg::Out(Len::Fixed(most))
        | Arg::InOut(Len::Fixed(most)) = arg
        {
            let most = usize::from(most);
            if part.len() > most {
                return Err(Malformed::TooLong {
                    nr: self.nr,
                    argument,
                    len: part.len(),
                    most,
                });
            }
        }
        Ok(part)
    }
}

/// Up to eight little-endian bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sysabi::TABLE;

    fn row(name: &str) -> &'static Syscall {
        TABLE.iter().find(|row| row.name == name).unwrap()
    }

    fn header(result: i64) -> Header {
        Header {
            result,
            ..Header::default()
        }
    }

    fn part(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
    }

    fn words(args: &[u64]) -> Vec<u8> {
        args.iter().flat_map(|arg| arg.to_le_bytes()).collect()
    }

    #[test]
    fn captured_call_has_arguments_input_and_filled_buffers() {
        let bytes = [words(&[4, 1, 7, 0x1000]), part(&[1; 12])].concat();
        let parsed = parse(row("epoll_ctl"), &header(0), &bytes).unwrap();
        assert_eq!(parsed.args, Some([4, 1, 7, 0x1000, 0, 0]));
        assert_eq!(parsed.inputs[3], Some(&[1; 12][..]));
        let bytes = [
            words(&[6, 0, 0, 0x800]),
            part(&16u32.to_le_bytes()),
            part(&[2; 16]),
            part(&[16, 0, 0, 0]),
        ]
        .concat();
        let parsed = parse(row("accept4"), &header(9), &bytes).unwrap();
        assert_eq!(parsed.filled[1], Some(&[2; 16][..]));
        assert_eq!(parsed.filled[2], Some(&[16, 0, 0, 0][..]));
        assert_eq!(parsed.inputs[2], Some(&[16, 0, 0, 0][..]));
    }

    #[test]
    fn command_decides_what_an_ioctl_carries() {
        let set = [words(&[5, 0x5421, 0]), part(&[1, 0, 0, 0])].concat();
        assert_eq!(
            parse(row("ioctl"), &header(0), &set).unwrap().inputs[2],
            Some(&[1, 0, 0, 0][..])
        );
        let ask = [words(&[5, 0x541b, 0]), part(&[9, 0, 0, 0])].concat();
        let parsed = parse(row("ioctl"), &header(0), &ask).unwrap();
        assert_eq!(
            (parsed.inputs[2], parsed.filled[2]),
            (None, Some(&[9, 0, 0, 0][..]))
        );
    }

    #[test]
    fn messages_have_a_head_and_one_run() {
        let flags = 0x20u32.to_le_bytes();
        let bytes = [part(&[1, 0]), part(b"control"), part(&flags), part(b"data")].concat();
        let parsed = parse(row("recvmsg"), &header(4), &bytes).unwrap();
        assert_eq!(
            parsed.message,
            Some(Message {
                name: &[1, 0],
                control: b"control",
                flags: 0x20
            })
        );
        assert_eq!(parsed.data, b"data");
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(
            parse(row("recvmsg"), &header(4), &longer),
            Err(Malformed::Excess { nr: 47, len: 1 })
        );
        let sent = part(b"rights");
        let parsed = parse(row("sendmsg"), &header(1), &sent).unwrap();
        assert_eq!(
            (parsed.message.unwrap().control, parsed.data),
            (&b"rights"[..], &b""[..])
        );
        assert_eq!(
            parse(row("readv"), &header(2), &part(b"ab")).unwrap().data,
            b"ab"
        );
    }

    #[test]
    fn a_clone_names_its_child() {
        let bytes = [&9u32.to_le_bytes()[..], &0x11u64.to_le_bytes()].concat();
        assert_eq!(
            parse(row("clone3"), &header(70), &bytes).unwrap().child,
            Some(Child {
                stream: 9,
                flags: Some(0x11)
            })
        );
        assert_eq!(
            parse(row("fork"), &header(70), &bytes[..4]).unwrap().child,
            Some(Child {
                stream: 9,
                flags: None
            })
        );
    }

    #[test]
    fn output_to_a_file_is_its_bytes_also_when_only_intended() {
        assert_eq!(
            parse(row("write"), &header(3), b"abc").unwrap().data,
            b"abc"
        );
        assert_eq!(parse(row("write"), &header(3), b"").unwrap().data, b"");
        let intent = Header {
            kind: kind::INTENT,
            result: 1,
            ..Header::default()
        };
        assert_eq!(
            parse(row("write"), &intent, b"abcdef").unwrap().data,
            b"abcdef"
        );
    }

    #[test]
    fn buffers_are_not_longer_than_their_type() {
        let bytes = part(&[0; 145]);
        let error = parse(row("fstat"), &header(0), &bytes);
        assert_eq!(
            error,
            Err(Malformed::TooLong {
                nr: 5,
                argument: 1,
                len: 145,
                most: 144
            })
        );
        assert_eq!(
            parse(row("fstat"), &header(0), &bytes[..9]),
            Err(Malformed::Truncated {
                nr: 5,
                missing: 140
            })
        );
        assert_eq!(
            parse(row("getpid"), &header(1), b"?"),
            Err(Malformed::Excess { nr: 39, len: 1 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_within_bounds(nr in 0usize..sysabi::COUNT, result in -200i64..2000, intent: bool,
                                              bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let header = Header { kind: if intent { kind::INTENT } else { nr as u16 }, result, ..Header::default() };
            if let Ok(parsed) = parse(&TABLE[nr], &header, &bytes) {
                let parts = parsed.inputs.iter().chain(&parsed.filled).flatten().map(|part| part.len()).sum::<usize>();
                prop_assert!(parts + parsed.data.len() <= bytes.len());
            }
        }

        #[test]
        fn what_is_laid_out_is_found(nr in 0usize..sysabi::COUNT, args: [u64; 6], fill in 0u8..8, data in 0usize..50) {
            let row = &TABLE[nr];
            let Some(shape) = row.shape(&args) else { return Ok(()) };
            let buffer = |arg: &Arg, i: usize| match arg {
                Arg::In(Len::Fixed(n)) | Arg::Out(Len::Fixed(n)) | Arg::InOut(Len::Fixed(n)) => vec![i as u8; usize::from(*n)],
                _ => vec![i as u8 ^ 0x40; usize::from(fill)],
            };
            let mut bytes = Vec::new();
            if row.capture {
                bytes.extend(words(&args[..row.arity()]));
                for (i, arg) in shape.iter().enumerate().filter(|(_, arg)| arg.is_input()) { bytes.extend(part(&buffer(arg, i))); }
            }
            for (i, arg) in shape.iter().enumerate().filter(|(_, arg)| arg.is_filled()) { bytes.extend(part(&buffer(arg, i))); }
            let run = vec![7; data];
            let mut runs = false;
            for arg in shape {
                if arg == Arg::OutMsg { bytes.extend([part(b"name"), part(b"control"), part(&[1, 0, 0, 0])].concat()); }
                if matches!(arg, Arg::OutMsg | Arg::OutVec) { bytes.extend(part(&run)); runs = true; }
            }
            let position = (POSITIONED.contains(&row.nr) && data > 0).then_some(args[3]);
            bytes.extend(position.iter().flat_map(|position| position.to_le_bytes()));
            if row.class == Class::Suppressed && !shape.contains(&Arg::InMsg) { bytes.extend(&run); runs = true; }
            if MAKES_THREADS.contains(&row.nr) { return Ok(()); }
            let parsed = parse(row, &header(data as i64), &bytes).unwrap();
            prop_assert_eq!(parsed.data.len(), if runs { data } else { 0 });
            prop_assert_eq!(parsed.position, position);
            if bytes.is_empty() { return Ok(()); }
            for (i, arg) in shape.iter().enumerate() {
                let expected = |yes: bool| yes.then(|| buffer(arg, i));
                prop_assert_eq!(parsed.inputs[i].map(<[u8]>::to_vec), expected(row.capture && arg.is_input()));
                prop_assert_eq!(parsed.filled[i].map(<[u8]>::to_vec), expected(arg.is_filled()));
            }
        }
    }
}
