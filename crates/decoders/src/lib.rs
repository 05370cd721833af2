//! Every decoder of bytes that come from outside, as one table.
//!
//! In: any bytes. Out: nothing, or a panic where a decoder panics, takes more memory than its bound, or
//! decodes what does not come back from its encoding. The tests here give each target some thousand inputs;
//! the fuzzer in `fuzz/` gives it as many as one lets it. A new decoder is an entry in its crate's `fuzz`
//! module and a row of [`TARGETS`].

mod calls;
mod seeds;

use eventlog::fuzz::fuzz_message;
use sys::counting::peak_of;

/// A decoder, or some that belong together.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// The bytes it takes.
    pub about: &'static str,
    /// Valid inputs, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    run: fn(&[u8]),
    /// The most memory it may take: so many bytes for each of the input, and these.
    bound: (usize, usize),
}

/// What [`eventlog::codec`] may set aside: a MiB for each collection that is open, of which no message
/// nests more than three.
const MESSAGE: usize = 3 << 20;
/// Something to work in.
const SMALL: usize = 64 << 10;
/// What two [`eventlog::frame::Decoder`]s start with, and something to work in.
const FRAMES: usize = 192 << 10;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "record",
        about: "records of a stream, and the payloads of system calls",
        seeds: seeds::records,
        run: eventlog::fuzz::fuzz_records,
        bound: (2, SMALL),
    },
    Target {
        name: "fold",
        about: "records of several streams, merged and folded",
        seeds: seeds::folds,
        run: eventlog::fuzz::fuzz_fold,
        bound: (256, SMALL),
    },
    Target {
        name: "snapshot",
        about: "the fold's snapshot",
        seeds: seeds::snapshots,
        run: eventlog::fuzz::fuzz_snapshot,
        bound: (64, MESSAGE + SMALL),
    },
    Target {
        name: "image",
        about: "a process's image with its sections, and what a takeover reads of them",
        seeds: seeds::images,
        run: |data| {
            eventlog::fuzz::fuzz_image(data);
            backup::fuzz::fuzz_checkpoint(data);
        },
        bound: (64, MESSAGE + SMALL),
    },
    Target {
        name: "frame",
        about: "frames of a connection and of a recording's file, with the bodies of every kind",
        seeds: seeds::frames,
        run: |data| {
            let sealed = stream::fuzz::sealed(data);
            for bytes in [data, &sealed] {
                stream::fuzz::fuzz_frames(bytes);
                stream::fuzz::fuzz_file(bytes);
            }
        },
        bound: (16, MESSAGE + FRAMES),
    },
    Target {
        name: "message",
        about: "hello, heartbeat, checkpoint and control messages, and those of the hand-over",
        seeds: seeds::messages,
        run: |data| {
            stream::fuzz::fuzz_hello(data);
            stream::fuzz::fuzz_heartbeat(data);
            stream::fuzz::fuzz_checkpoint(data);
            stream::fuzz::fuzz_control(data);
            fuzz_message::<eventlog::handover::GuestState>(data);
            fuzz_message::<eventlog::handover::HandshakeRecord>(data);
            fuzz_message::<eventlog::handover::OpeningRecord>(data);
            fuzz_message::<eventlog::recording::Meta>(data);
            fuzz_message::<gate::Handshake>(data);
        },
        bound: (16, MESSAGE + SMALL),
    },
    Target {
        name: "store",
        about: "frames of a primary, as a backup keeps log and checkpoints",
        seeds: seeds::frames,
        run: |data| {
            backup::fuzz::fuzz_store(data);
            backup::fuzz::fuzz_store(&stream::fuzz::sealed(data));
        },
        bound: (16, MESSAGE + FRAMES),
    },
    Target {
        name: "packet",
        about: "frames of the container's network: TCP that was kept for it, and address resolution",
        seeds: seeds::packets,
        run: |data| {
            gate::fuzz::fuzz_frame(data);
            gate::fuzz::fuzz_opening(data);
            shim::fuzz::fuzz_neighbour(data);
        },
        bound: (4, SMALL),
    },
    Target {
        name: "control",
        about: "lines of the control socket, and messages of a container's init",
        seeds: seeds::lines,
        run: |data| {
            shim::fuzz::fuzz_control(data);
            shim::fuzz::fuzz_init(data);
        },
        bound: (16, SMALL),
    },
    Target {
        name: "key",
        about: "key files, and the file of a container's generation",
        seeds: seeds::keys,
        run: |data| {
            stream::fuzz::fuzz_keys(data);
            backup::fuzz::fuzz_generation(data);
        },
        bound: (16, SMALL),
    },
];

impl Target {
    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// The most memory that an input of so many bytes may take.
    #[must_use]
    pub const fn bound(&self, len: usize) -> usize {
        self.bound.0 * len + self.bound.1
    }

    /// Gives it `data`, and answers how much memory that took.
    ///
    /// # Panics
    /// If a decoder did what none may. Memory is seen only where the program's allocator is
    /// [`sys::counting::Counting`].
    pub fn check(&self, data: &[u8]) -> usize {
        let peak = peak_of(|| (self.run)(data));
        let (name, bound) = (self.name, self.bound(data.len()));
        assert!(
            peak <= bound,
            "{name} took {peak} bytes of memory for {} of input, more than {bound}",
            data.len()
        );
        peak
    }
}
