//! Follows a chunked body to its end.

use super::head;
use crate::config::CHUNK_EXTRAS_BYTES_MAX;

/// Where in a chunked body the next byte is.
///
/// The HTTP library accepts everything that this accepts, and ends the body at the same byte. It ignores and does not
/// bound extensions and trailers, and accepts any line as a trailer.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: InChunk,
    /// Digits of the size so far.
    digits: u8,
    /// The digits of the chunk's size so far, then the number of bytes left of it.
    left: u64,
    /// Bytes of extensions and trailers so far.
    extras: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum InChunk {
    #[default]
    Size,
    /// In spaces after a size.
    SizeSpace,
    Extension,
    /// Before the LF of a size.
    SizeLf,
    Data,
    /// Before the CR of a chunk.
    DataCr,
    DataLf,
    /// At the beginning of a line after the last chunk.
    TrailerStart,
    /// In the name of a trailer.
    TrailerName,
    /// In the value of a trailer.
    Trailer,
    TrailerLf,
    /// Before the LF that ends the body.
    EndLf,
    End,
}

impl Chunks {
    pub(super) fn is_at_end(&self) -> bool {
        self.at == InChunk::End
    }

    /// Follows the chunks through `bytes`; returns how many bytes belong to the body.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut passed = 0;
        while passed < bytes.len() && self.at != InChunk::End {
            if self.at == InChunk::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - passed);
                passed += count;
                self.left -= count as u64;
                if self.left == 0 {
                    self.at = InChunk::DataCr;
                }
                continue;
            }
            self.at = self.step(bytes[passed])?;
            passed += 1;
        }
        Ok(passed)
    }

    fn step(&mut self, byte: u8) -> Result<InChunk, &'static str> {
        use InChunk::{
            Data, DataCr, DataLf, End, EndLf, Extension, Size, SizeLf, SizeSpace, Trailer, TrailerLf, TrailerName,
            TrailerStart,
        };
        if matches!(self.at, SizeSpace | Extension | TrailerStart | TrailerName | Trailer) {
            self.extras += 1;
            if self.extras > CHUNK_EXTRAS_BYTES_MAX {
                return Err("its chunk extensions and trailers are too long");
            }
        }
        match (self.at, byte) {
            (Size, _) if byte.is_ascii_hexdigit() => {
                if self.digits == 16 {
                    return Err("the size of a chunk must have at most 16 digits");
                }
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Ok(Size)
            }
            (Size, _) if self.digits == 0 => Err("the size of a chunk must be a hexadecimal number"),
            (Size | SizeSpace, b' ' | b'\t') => Ok(SizeSpace),
            (Size | SizeSpace, b';') => Ok(Extension),
            (Size | SizeSpace | Extension, b'\r') => Ok(SizeLf),
            (Size | SizeSpace, _) => Err("the size of a chunk must be a hexadecimal number that ends with CR LF"),
            (Extension | Trailer, 0..=8 | 10..=12 | 14..=31 | 127) => {
                Err("a chunk extension or trailer contains a control character")
            }
            (Extension, _) => Ok(Extension),
            (SizeLf, b'\n') => {
                self.digits = 0;
                Ok(if self.left == 0 { TrailerStart } else { Data })
            }
            (DataCr, b'\r') => Ok(DataLf),
            (DataLf, b'\n') => Ok(Size),
            (TrailerStart, b'\r') => Ok(EndLf),
            (TrailerStart | TrailerName, _) if head::is_token(byte) => Ok(TrailerName),
            (TrailerName, b':') => Ok(Trailer),
            (TrailerStart | TrailerName, _) => Err("a trailer must be a name, a colon and a value"),
            (Trailer, b'\r') => Ok(TrailerLf),
            (Trailer, _) => Ok(Trailer),
            (TrailerLf, b'\n') => Ok(TrailerStart),
            (EndLf, b'\n') => Ok(End),
            (DataCr | DataLf, _) => Err("a chunk is longer than its size"),
            (SizeLf | TrailerLf | EndLf, _) => Err("a CR stands alone among the chunks"),
            (Data | End, _) => Err("the chunks have ended"),
        }
    }
}
