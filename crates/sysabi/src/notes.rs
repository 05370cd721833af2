//! What the class alone does not say: what the guest does with a filtered call, why a call is refused.

/// One or two sentences on the call with this number, for the documentation.
#[must_use]
pub fn note(nr: u16) -> Option<&'static str> {
    NOTES
        .iter()
        .find(|(numbers, _)| numbers.contains(&nr))
        .map(|(_, text)| *text)
}

const NOTES: &[(&[u16], &str)] = &[
    // Filtered.
    (
        &[2, 85, 257, 437],
        "A regular file is opened on both sides, in replay at the logged number and without O_TRUNC, O_CREAT and \
         O_EXCL, so that it can be mapped. Anything else exists in replay in the log alone.",
    ),
    (
        &[319],
        "Made on both sides, in replay at the logged number, so that it can be mapped.",
    ),
    (
        &[3, 436],
        "Executed on both sides for descriptors that replay really has; others are fed. On a connection the last \
         close tells the gate, which sends FIN when the client has everything. The guest's own descriptors are \
         left alone.",
    ),
    (
        &[32, 33, 292],
        "Executed on both sides if the old descriptor exists in replay, at the logged number, else fed.",
    ),
    (
        &[72],
        "F_DUPFD and F_DUPFD_CLOEXEC as dup; the rest is fed. A command that the table does not know is answered \
         with EINVAL.",
    ),
    (
        &[43, 288],
        "Recording: executed, or served from the virtual accept queue after a takeover; the peer's name is \
         recorded even if the application did not ask for it; the connection gets an output buffer before the \
         record is committed. Replay: fed.",
    ),
    (
        &[299, 307],
        "Callers fall back to recvmsg and sendmsg, one record for each message.",
    ),
    (
        &[56, 57, 58, 435],
        "Executed on both sides, in replay with the logged number. The child gets a thread block, a hook stack and a \
         ring of its own before the call, with signals blocked; vfork keeps its sharing of memory. The child's \
         stream begins with BIRTH.",
    ),
    (
        &[59, 322],
        "Executed on both sides; the host injects the next image, whose first record is EXEC.",
    ),
    (
        &[60, 231],
        "EXIT is committed first, then the call is executed on both sides.",
    ),
    (
        &[61, 247],
        "Result and status come from the log; replay reaps the child of that number, waiting for its end.",
    ),
    (
        &[13],
        "SIGSYS, SIGTRAP and faults have the guest's handler. Other handlers are replaced by a stub that keeps the \
         signal for the next call, lock or clock; a loop without any of them gets it where it is found after a while. \
         Executed on both sides.",
    ),
    (
        &[14, 130],
        "SIGSYS and SIGTRAP are kept out of the mask; the mask is executed, but in replay the kernel holds \
         everything back; the waiting is fed.",
    ),
    (
        &[15],
        "Executed on both sides and never logged, on the application's own stack frame.",
    ),
    (
        &[157],
        "Supported options are executed on both sides; seccomp, system call dispatch, PR_SET_MM and PR_SET_TSC are \
         answered with EINVAL.",
    ),
    (
        &[158],
        "ARCH_SET_FS is executed on both sides; the gs base belongs to the guest: EINVAL.",
    ),
    // Others that need a word.
    (
        &[9],
        "In replay at the logged address with MAP_FIXED. The kernel's choice is the result.",
    ),
    (
        &[25],
        "In replay to the logged address with MREMAP_FIXED, if it moved.",
    ),
    (
        &[16],
        "Only requests that the table knows; others are answered with ENOTTY. The third argument is an input \
             buffer, a filled one, both or neither, as the request says.",
    ),
    (
        &[45],
        "The record's version holds the flags, so that peeked bytes are not taken for read ones. With MSG_WAITALL, \
         a part that a stop ended has a record of its own, and the rest follows.",
    ),
    (
        &[47],
        "MSG_PEEK of the call is added to the recorded flags of the message. Descriptors that arrive \
             (SCM_RIGHTS) change the descriptor table, and the record carries its version.",
    ),
    (
        &[40, 275, 276, 278, 326],
        "To a connection that the gate owns: read by the guest, then appended as a write; the others, and all of them to \
         standard output and error: `EINVAL`, and their callers copy.",
    ),
    (
        &[62, 129, 200, 234, 297],
        "Also sent in replay, to each process that it reaches, so that what was not got when the log ends is still \
         pending; not where the log says that it was got.",
    ),
    (
        &[109, 112],
        "Also made in replay, so that what is sent to a group reaches it.",
    ),
    (
        &[202],
        "Not logged: order comes from the recorded locks; a timed wait that ends by its time is a lock event.",
    ),
    (
        &[131],
        "The guest's signal stub runs there, too; both sides have the same stack.",
    ),
    (
        &[37, 38, 222, 223, 286],
        "No timer runs in replay: expiries are records. The fold knows what to arm at go-live.",
    ),
    // Refused.
    (
        &[206, 207, 208, 209, 210, 333, 425, 426, 427],
        "The kernel writes results into memory behind the guest's back.",
    ),
    (
        &[334],
        "The kernel writes the processor's number into memory behind the guest's back.",
    ),
    (
        &[449, 454, 455, 456],
        "Waiting on words whose order is not recorded; libraries fall back to futex.",
    ),
    (
        &[
            29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241, 242, 243, 244, 245,
        ],
        "The object lives outside all descriptors, and takeover could not rebuild it.",
    ),
    (
        &[310, 311, 440, 448, 438, 101],
        "Reaches into another process past its log.",
    ),
    (
        &[317, 444, 445, 446],
        "A filter would hit the guest's own calls and cannot be rebuilt on another host.",
    ),
    (
        &[323, 447, 453, 462, 216, 256, 279, 329, 330, 331],
        "Memory that neither checkpoint nor replay could handle.",
    ),
    (
        &[300, 301, 298, 321, 335, 336],
        "Watches the kernel from inside the container.",
    ),
    (
        &[303, 304, 463, 464],
        "The shape of its buffers is not in the table; programs fall back to older calls.",
    ),
    (
        &[
            155, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442, 457, 458, 467, 170, 171,
            139,
        ],
        "The container's namespaces and mounts are made by the shim and stay as they are.",
    ),
    (&[248, 249, 250], "Key rings belong to the host's kernel."),
    (&[164, 227], "The clock belongs to the host."),
    (
        &[
            214, 215, 134, 156, 174, 177, 178, 180, 181, 182, 183, 184, 185, 205, 211, 212, 236,
        ],
        "Not in this kernel.",
    ),
    (
        &[
            153, 154, 163, 167, 168, 169, 172, 173, 175, 176, 179, 246, 313, 320, 443,
        ],
        "Administers the host.",
    ),
    (
        &[274, 459, 460, 461],
        "Not needed by servers, and its answer belongs to the host.",
    ),
];
