//! The functions of the C library that take a stream's lock. A new one is a line at the end of the table.

use super::wrapper;

/// A function that takes a stream's lock.
pub(super) struct Locked {
    pub(super) name: &'static [u8],
    pub(super) stream: Of,
    pub(super) wrapper: unsafe extern "C" fn(),
    pub(super) found: Found,
}

/// Which stream a function takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The one that this argument points to, from 0.
    Argument(usize),
    /// The one that this argument points to, which is gone afterwards.
    Gone(usize),
    /// The standard input.
    Input,
    /// The standard output.
    Output,
}

/// Where a function is found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Under its name.
    Named,
    /// Where the one of this name ends in a jump to it: all of its kind do.
    Behind,
}

macro_rules! locked {
    ($($index:literal $name:literal $stream:expr, $found:ident;)*) => {
        pub(super) static FUNCTIONS: &[Locked] = &[$(Locked {
            name: $name,
            stream: $stream,
            wrapper: wrapper::<{ $index * 8 }, $index>,
            found: Found::$found,
        }),*];
    };
}

locked! {
    0 b"vfprintf" Of::Argument(0), Behind;
    1 b"vfwprintf" Of::Argument(0), Behind;
    2 b"vfscanf" Of::Argument(0), Behind;
    3 b"vfwscanf" Of::Argument(0), Behind;
    4 b"puts" Of::Output, Named;
    5 b"putchar" Of::Output, Named;
    6 b"putwchar" Of::Output, Named;
    7 b"fputs" Of::Argument(1), Named;
    8 b"fputws" Of::Argument(1), Named;
    9 b"fputc" Of::Argument(1), Named;
    10 b"putc" Of::Argument(1), Named;
    11 b"fputwc" Of::Argument(1), Named;
    12 b"putwc" Of::Argument(1), Named;
    13 b"fwrite" Of::Argument(3), Named;
    14 b"fread" Of::Argument(3), Named;
    15 b"__fread_chk" Of::Argument(4), Named;
    16 b"fgets" Of::Argument(2), Named;
    17 b"__fgets_chk" Of::Argument(3), Named;
    18 b"fgetws" Of::Argument(2), Named;
    19 b"__fgetws_chk" Of::Argument(3), Named;
    20 b"gets" Of::Input, Named;
    21 b"getchar" Of::Input, Named;
    22 b"getwchar" Of::Input, Named;
    23 b"fgetc" Of::Argument(0), Named;
    24 b"getc" Of::Argument(0), Named;
    25 b"fgetwc" Of::Argument(0), Named;
    26 b"getwc" Of::Argument(0), Named;
    27 b"getdelim" Of::Argument(3), Named;
    28 b"ungetc" Of::Argument(1), Named;
    29 b"ungetwc" Of::Argument(1), Named;
    30 b"fflush" Of::Argument(0), Named;
    31 b"fseek" Of::Argument(0), Named;
    32 b"fseeko" Of::Argument(0), Named;
    33 b"fseeko64" Of::Argument(0), Named;
    34 b"ftell" Of::Argument(0), Named;
    35 b"ftello" Of::Argument(0), Named;
    36 b"ftello64" Of::Argument(0), Named;
    37 b"rewind" Of::Argument(0), Named;
    38 b"fgetpos" Of::Argument(0), Named;
    39 b"fgetpos64" Of::Argument(0), Named;
    40 b"fsetpos" Of::Argument(0), Named;
    41 b"fsetpos64" Of::Argument(0), Named;
    42 b"setvbuf" Of::Argument(0), Named;
    43 b"setbuffer" Of::Argument(0), Named;
    44 b"freopen" Of::Argument(2), Named;
    45 b"freopen64" Of::Argument(2), Named;
    46 b"feof" Of::Argument(0), Named;
    47 b"ferror" Of::Argument(0), Named;
    48 b"clearerr" Of::Argument(0), Named;
    49 b"fclose" Of::Gone(0), Named;
}
