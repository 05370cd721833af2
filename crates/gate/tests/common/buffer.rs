//! An output buffer in ordinary memory.

use std::sync::{Arc, Mutex};

use gate::OutputBuffer;

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    written: u64,
    trimmed: u64,
    freed: bool,
    error: i32,
}

/// A ring like the arena's.
pub struct Buffer(Mutex<Inner>, u64);

impl Buffer {
    pub fn new(capacity: u64) -> Arc<Self> {
        let inner = Inner {
            bytes: vec![0; capacity as usize],
            ..Inner::default()
        };
        Arc::new(Self(Mutex::new(inner), capacity))
    }

    /// A buffer in the middle of a stream: `tail` are the last bytes written, up to `written`.
    pub fn resumed(capacity: u64, written: u64, tail: &[u8]) -> Arc<Self> {
        let b = Self::new(capacity);
        {
            let mut i = b.0.lock().unwrap();
            i.written = written - tail.len() as u64;
            i.trimmed = i.written;
        }
        assert_eq!(b.write(tail), tail.len());
        b
    }

    /// Appends what there is room for.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut i = self.0.lock().unwrap();
        let room = (self.1 - (i.written - i.trimmed)) as usize;
        let n = bytes.len().min(room);
        for (k, b) in bytes[..n].iter().enumerate() {
            let at = ((i.written + k as u64) % self.1) as usize;
            i.bytes[at] = *b;
        }
        i.written += n as u64;
        n
    }

    pub fn trimmed(&self) -> u64 {
        self.0.lock().unwrap().trimmed
    }

    pub fn error(&self) -> i32 {
        self.0.lock().unwrap().error
    }

    pub fn freed(&self) -> bool {
        self.0.lock().unwrap().freed
    }
}

impl OutputBuffer for Buffer {
    fn written(&self) -> u64 {
        self.0.lock().unwrap().written
    }
    fn copy_out(&self, from: u64, out: &mut [u8]) {
        let i = self.0.lock().unwrap();
        assert!(
            from >= i.trimmed && from + out.len() as u64 <= i.written,
            "bytes that are not there"
        );
        for (k, b) in out.iter_mut().enumerate() {
            *b = i.bytes[((from + k as u64) % self.1) as usize];
        }
    }
    fn set_trimmed(&self, to: u64) {
        let mut i = self.0.lock().unwrap();
        assert!(
            to >= i.trimmed && to <= i.written,
            "trimmed {} to {to} of {}",
            i.trimmed,
            i.written
        );
        i.trimmed = to;
    }
    fn set_error(&self, errno: i32) {
        self.0.lock().unwrap().error = errno;
    }
    fn free(&self) {
        self.0.lock().unwrap().freed = true;
    }
    fn capacity(&self) -> u64 {
        self.1
    }
}
