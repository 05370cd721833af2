//! Channels whose state no descriptor holds, and calls that the kernel completes behind the application.

use super::refused;
use crate::Syscall;

pub(super) const ROWS: &[Syscall] = &[
    refused(29, "shmget"),
    refused(30, "shmat"),
    refused(31, "shmctl"),
    refused(64, "semget"),
    refused(65, "semop"),
    refused(66, "semctl"),
    refused(67, "shmdt"),
    refused(68, "msgget"),
    refused(69, "msgsnd"),
    refused(70, "msgrcv"),
    refused(71, "msgctl"),
    refused(206, "io_setup"),
    refused(207, "io_destroy"),
    refused(208, "io_getevents"),
    refused(209, "io_submit"),
    refused(210, "io_cancel"),
    refused(220, "semtimedop"),
    refused(240, "mq_open"),
    refused(241, "mq_unlink"),
    refused(242, "mq_timedsend"),
    refused(243, "mq_timedreceive"),
    refused(244, "mq_notify"),
    refused(245, "mq_getsetattr"),
    refused(333, "io_pgetevents"),
    refused(425, "io_uring_setup"),
    refused(426, "io_uring_enter"),
    refused(427, "io_uring_register"),
];
