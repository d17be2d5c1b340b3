//! Documents to load: the built-in sample, or a file of NDJSON, plain or gzip, read in batches.
//!
//! Must not know: where they go.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

/// 3,000 packages of Debian 12, made from the distribution's own index.
const SAMPLE: &[u8] = include_bytes!("../../data/packages-3000.ndjson.gz");
/// Largest batch: small enough that progress shows, large enough that a node's indexing is worth its while.
const BATCH_MAX_BYTES: usize = 8 << 20;
const BATCH_MAX_DOCUMENTS: usize = 4_000;
/// Longest line.
const LINE_MAX_BYTES: u64 = 64 << 20;

/// Where documents come from.
#[derive(Debug, Clone)]
pub enum Documents {
    /// The built-in sample.
    Sample,
    /// A file.
    File(PathBuf),
}

/// Some documents, as NDJSON.
pub struct Batch {
    /// The lines.
    pub ndjson: Bytes,
    /// How many.
    pub documents: usize,
}

impl Documents {
    /// The file that `--docs` names, or the sample.
    pub fn of(path: Option<PathBuf>) -> Self {
        path.map_or(Self::Sample, Self::File)
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Sample => "the built-in sample".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    fn open(&self) -> anyhow::Result<Box<dyn BufRead>> {
        let raw: Box<dyn Read> = match self {
            Self::Sample => Box::new(Cursor::new(SAMPLE)),
            Self::File(path) => {
                Box::new(File::open(path).with_context(|| format!("--docs: can't read {}", path.display()))?)
            }
        };
        let mut raw = BufReader::new(raw);
        let zipped =
            raw.fill_buf().with_context(|| format!("can't read {}", self.describe()))?.starts_with(&[0x1f, 0x8b]);
        Ok(if zipped { Box::new(BufReader::new(MultiGzDecoder::new(raw))) } else { Box::new(raw) })
    }

    /// Every line that is not blank, in order.
    fn lines(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<u8>>>> {
        let mut reader = self.open()?;
        let what = self.describe();
        let mut number = 0_u64;
        let mut next = move || -> anyhow::Result<Option<Vec<u8>>> {
            loop {
                number += 1;
                let mut line = Vec::new();
                let read = (&mut reader).take(LINE_MAX_BYTES).read_until(b'\n', &mut line);
                let read = read.with_context(|| format!("can't read line {number} of {what}"))?;
                if read as u64 == LINE_MAX_BYTES && !line.ends_with(b"\n") {
                    bail!("line {number} of {what} is longer than {LINE_MAX_BYTES} bytes");
                }
                if read == 0 {
                    return Ok(None);
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
        };
        Ok(std::iter::from_fn(move || next().transpose()))
    }

    /// How many there are; reads everything once, so that a broken file is found before anything is sent.
    pub fn count(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for line in self.lines()? {
            line?;
            count += 1;
        }
        Ok(count)
    }

    /// The first ones, parsed.
    pub fn first(&self, count: usize) -> anyhow::Result<Vec<Map<String, Value>>> {
        let parse = |line: anyhow::Result<Vec<u8>>| {
            serde_json::from_slice(&line?)
                .with_context(|| format!("{}: expected one JSON object a line", self.describe()))
        };
        self.lines()?.take(count).map(parse).collect()
    }

    /// All of them, in batches.
    pub fn batches(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Batch>>> {
        let mut lines = self.lines()?.peekable();
        Ok(std::iter::from_fn(move || {
            let mut batch = Vec::new();
            let mut documents = 0;
            while documents < BATCH_MAX_DOCUMENTS {
                // A line that does not fit begins the next batch.
                let fits = |line: &anyhow::Result<Vec<u8>>| {
                    documents == 0 || line.as_ref().is_ok_and(|l| batch.len() + l.len() < BATCH_MAX_BYTES)
                };
                match lines.next_if(fits) {
                    Some(Ok(line)) => {
                        batch.extend_from_slice(line.trim_ascii());
                        batch.push(b'\n');
                        documents += 1;
                    }
                    Some(Err(e)) => return Some(Err(e)),
                    None => break,
                }
            }
            (documents > 0).then(|| Ok(Batch { ndjson: batch.into(), documents }))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, Documents) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let documents = Documents::File(file.path().to_owned());
        (file, documents)
    }

    #[test]
    fn sample_is_a_few_thousand_documents_with_ids() {
        let count = Documents::Sample.count().unwrap();
        assert!((2_000..10_000).contains(&count));
        let batches: Vec<Batch> = Documents::Sample.batches().unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|b| b.documents).sum::<usize>(), count);
        assert!(Documents::Sample.first(5).unwrap().iter().all(|d| d.contains_key("id")));
    }

    #[test]
    fn plain_and_zipped_files_read_alike_and_blank_lines_count_for_nothing() {
        let text = b"{\"id\":1}\n\n  \n{\"id\":2}\r\n{\"id\":3}";
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(text).unwrap();
        for bytes in [text.to_vec(), zipped.finish().unwrap()] {
            let (_keep, documents) = file(&bytes);
            assert_eq!(documents.count().unwrap(), 3);
            let batches: Vec<Batch> = documents.batches().unwrap().map(Result::unwrap).collect();
            assert_eq!(batches.len(), 1);
            assert_eq!(&batches[0].ndjson[..], b"{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n");
        }
    }

    #[test]
    fn batches_end_at_their_bounds() {
        let (_keep, documents) = file("{\"id\":1}\n".repeat(BATCH_MAX_DOCUMENTS * 2 + 1).as_bytes());
        let sizes: Vec<usize> = documents.batches().unwrap().map(|b| b.unwrap().documents).collect();
        assert_eq!(sizes, [BATCH_MAX_DOCUMENTS, BATCH_MAX_DOCUMENTS, 1]);
        let long = format!("{{\"id\":1,\"text\":\"{}\"}}\n", "x".repeat(BATCH_MAX_BYTES / 2));
        let (_keep, documents) = file(long.repeat(3).as_bytes());
        let sizes: Vec<usize> = documents.batches().unwrap().map(|b| b.unwrap().documents).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let missing = Documents::File("/nowhere/x.ndjson".into());
        assert!(missing.count().unwrap_err().to_string().contains("--docs: can't read /nowhere/x.ndjson"));
        let (_keep, cut) = file(&SAMPLE[..SAMPLE.len() / 2]);
        assert!(cut.count().unwrap_err().to_string().contains("can't read line"));
        let (_keep, text) = file(b"no json\n");
        assert!(text.first(1).unwrap_err().to_string().contains("expected one JSON object a line"));
    }
}
