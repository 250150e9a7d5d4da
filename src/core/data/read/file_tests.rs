//! Dataset files in the forms in which people have them.

use std::fs;
use std::sync::Arc;

use ::parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use pretty_assertions::assert_eq;
use serde_json::json;

use super::unpack::tests::{gzip, zstandard};
use super::*;

const WHOLE: &str = "data.eval=0";

/// A project folder with these files.
fn project(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn read(project: &Path, settings: &[&str]) -> Result<Dataset, DataError> {
    let settings: Vec<String> =
        ["model.path=m"].iter().chain(settings).map(|&setting| setting.to_owned()).collect();
    let config = Config::parse("", "luthier.toml".as_ref(), &settings).unwrap();
    read_dataset(&config, project)
}

fn texts(dataset: &Dataset) -> Vec<String> {
    assert_eq!(dataset.problems, []);
    dataset.rows.all().iter().map(|row| row.example.plain_text()).collect()
}

/// The rows and notices of one file.
fn one(name: &str, content: &[u8]) -> (Vec<String>, Vec<String>) {
    let folder = project(&[(name, content)]);
    let train = format!("data.train={name}");
    let dataset = read(folder.path(), &[&train, WHOLE]).unwrap_or_else(|error| panic!("{name}: {error}"));
    (texts(&dataset), dataset.notices)
}

fn refused(name: &str, content: &[u8]) -> String {
    let folder = project(&[(name, content)]);
    let train = format!("data.train={name}");
    read(folder.path(), &[&train, WHOLE]).unwrap_err().to_string()
}

#[test]
fn parts_are_read_in_the_order_of_their_names() {
    let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n").into_bytes();
    let folder = project(&[
        ("part-1.jsonl", &row("b")),
        ("part-0.jsonl", &row("a")),
        ("data/x.jsonl.gz", &gzip(&row("c"))),
        ("data/y/z.txt.zst", &zstandard(b"d\n")),
    ]);
    let dataset = read(folder.path(), &["data.train=[\"part-*.jsonl\", \"data\"]", WHOLE]).unwrap();
    assert_eq!(texts(&dataset), ["a", "b", "c", "d"]);
    let places: Vec<String> = dataset.rows.all().iter().map(|row| row.origin.to_string()).collect();
    assert_eq!(places, ["part-0.jsonl:1", "part-1.jsonl:1", "data/x.jsonl.gz:1", "data/y/z.txt.zst:1"]);
    let held = read(folder.path(), &["data.train=part-*.jsonl", "data.eval=\"part-1*\""]).unwrap();
    let splits: Vec<Split> = held.rows.all().iter().map(|row| row.split).collect();
    assert_eq!(splits, [Split::Train, Split::Eval]);
    assert_eq!(held.notices, ["part-*.jsonl: 1 file is held out by data.eval, and so not trained on"]);
}

#[test]
fn a_folder_with_named_parts_is_read_in_parts() {
    let folder = project(&[("data/train.txt", b"a\n"), ("data/test.txt", b"b\n")]);
    let dataset = read(folder.path(), &["data.train=data", WHOLE]).unwrap();
    assert_eq!(texts(&dataset), ["a"]);
    assert_eq!(dataset.notices, ["data: 1 train file is read; 1 file that looks like a test split is not"]);
}

#[test]
fn datasets_of_the_hub_are_read_in_parts() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = format!("datasets--org--name/snapshots/{commit}");
    let (train, test) = (format!("{snapshot}/train.txt"), format!("{snapshot}/test.txt"));
    let cache = project(&[
        ("datasets--org--name/refs/main", commit.as_bytes()),
        (&train, b"a\nb\n"),
        (&test, b"c\n"),
    ]);
    let set = ["model.path=m", "data.train=hf:org/name", "data.eval=hf:org/name"].map(str::to_owned);
    let config = Config::parse("", "luthier.toml".as_ref(), &set).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = || Ok(HubCache::new(cache.path().to_owned()));
    let dataset = read_without(&config, folder.path(), &Quarantine::default(), &open, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let rows: Vec<(String, Split)> =
        dataset.rows.all().iter().map(|row| (row.origin.to_string(), row.split)).collect();
    assert_eq!(
        rows,
        [
            ("hf:org/name/train.txt:1".to_owned(), Split::Train),
            ("hf:org/name/train.txt:2".to_owned(), Split::Train),
            ("hf:org/name/test.txt:1".to_owned(), Split::Eval),
        ]
    );
    assert_eq!(dataset.notices.len(), 2);
}

#[test]
fn compressed_files_of_every_content_are_read() {
    let contents: [(&str, &[u8]); 6] = [
        ("a.jsonl", b"{\"text\": \"x\"}\n{\"text\": \"y\"}\n"),
        ("a.ndjson", b"{\"text\": \"x\"}\n{\"text\": \"y\"}"),
        ("a.json", b"[{\"text\": \"x\"}, {\"text\": \"y\"}]"),
        ("a.csv", b"text,id\nx,1\ny,2\n"),
        ("a.tsv", b"text\tid\nx\t1\ny\t2\n"),
        ("a.txt", b"x\ny\n"),
    ];
    for (name, content) in contents {
        for (ending, packed) in [("gz", gzip(content)), ("zst", zstandard(content))] {
            let name = format!("{name}.{ending}");
            assert_eq!(one(&name, &packed), (vec!["x".to_owned(), "y".to_owned()], vec![]), "{name}");
            let error = refused(&name, &packed[..packed.len() - 2]);
            assert!(error.contains(&name) && error.contains("damaged or cut off"), "{error}");
        }
    }
    assert!(refused("a.parquet.gz", b"x").contains(KNOWN));
}

#[test]
fn a_long_row_in_a_compressed_file_does_not_fill_memory() {
    let mut content = b"{\"text\": \"".to_vec();
    content.resize(MAX_ROW_BYTES + 100, b'x');
    content.extend_from_slice(b"\"}\n{\"text\": \"y\"}\n");
    let folder = project(&[("a.jsonl.zst", &zstandard(&content))]);
    let dataset = read(folder.path(), &["data.train=a.jsonl.zst", WHOLE]).unwrap();
    assert_eq!(dataset.rows.len(), 1);
    assert_eq!(dataset.problems[0].to_string(), "a.jsonl.zst:1: longer than 64 MiB");
}

#[test]
fn tables_of_spreadsheets_are_read_by_their_separator() {
    let (rows, notices) = one("a.csv", "\u{feff}\"prompt\";completion\r\n1,5;\"b;c\"\r\n".as_bytes());
    assert_eq!(
        (rows, notices),
        (vec!["1,5\nb;c".to_owned()], vec!["a.csv: fields are separated by \";\"".to_owned()])
    );
    let folder = project(&[("a.csv", b"sep=;\nprompt;completion\na;b\nc\n")]);
    let dataset = read(folder.path(), &["data.train=a.csv", WHOLE]).unwrap();
    assert_eq!(dataset.rows.all()[0].origin.line, 3);
    assert_eq!(dataset.problems[0].to_string(), "a.csv:4: 1 fields, but the header has 2");
    assert_eq!(one("a.csv", b"prompt\tcompletion\na\tb\n").1, ["a.csv: fields are separated by a tab"]);
    assert_eq!(one("a.tsv", b"prompt,completion\na,b\n").1, ["a.tsv: fields are separated by \",\""]);
    assert_eq!(one("a.csv", b"text\na;b\n"), (vec!["a;b".to_owned()], vec![]));
}

#[test]
fn utf_16_is_named_with_its_remedy() {
    let marked = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for name in ["a.csv", "a.tsv", "a.txt", "a.json", "a.jsonl"] {
        for text in ["\u{feff}prompt,completion\na,b\n", "prompt,completion\na,b\n"] {
            let error = refused(name, &marked(text));
            assert!(error.starts_with(&format!("{name}: UTF-16 text; save it as UTF-8")), "{error}");
        }
    }
}

#[test]
fn numbers_that_json_lacks_are_read_as_null() {
    let lines =
        b"{\"text\": \"NaN\", \"score\": NaN}\n{\"text\": \"b\", \"s\": [-Infinity, 1]}\n{\"text\": \"c\"}\n";
    let notice = |place: &str| vec![format!("a.{place} read as null")];
    let rows = ["NaN", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(one("a.jsonl", lines), (rows.clone(), notice("jsonl: NaN or Infinity in 2 rows are")));
    let array = b"[{\"text\": \"NaN\", \"score\": NaN}, {\"text\": \"b\"}, {\"text\": \"c\"}]";
    assert_eq!(one("a.json", array), (rows, notice("json: NaN or Infinity in 1 place is")));
    let folder = project(&[("a.jsonl", b"{\"text\": NaN}\n{\"text\": NaN,}\n")]);
    let dataset = read(folder.path(), &["data.train=a.jsonl", WHOLE]).unwrap();
    assert_eq!((dataset.rows.len(), dataset.unreadable), (0, 2));
}

/// Texts as the column of a Parquet file.
fn parquet_of(texts: &[&str], codec: Compression, version: WriterVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type("message row { required binary text (UTF8); }").unwrap());
    let properties = WriterProperties::builder().set_compression(codec).set_writer_version(version).build();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(text.as_bytes().to_vec())).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_is_read_with_every_codec() {
    let long = "a longer text ".repeat(200);
    let texts = ["first", &long, "last"];
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let (rows, notices) = one("a.parquet", &parquet_of(&texts, codec, version));
            assert_eq!(
                (rows.as_slice(), notices),
                (texts.map(str::to_owned).as_slice(), vec![]),
                "{codec:?}"
            );
        }
    }
}

/// Texts, definition levels and repetition levels.
type Column<'a> = (&'a [&'a str], &'a [i16], &'a [i16]);

/// A Parquet file of two conversations whose messages have each other's fields, null.
fn padded() -> Vec<u8> {
    let schema = "message row {
        required group messages (LIST) { repeated group list { required group element {
            required binary role (UTF8); required binary content (UTF8);
            optional group call { optional binary item (UTF8); optional binary day (UTF8); }
            optional group names (LIST) { repeated group list { optional binary element (UTF8); } } } } }
        optional binary source (UTF8);
    }";
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let columns: [Column; 6] = [
        (&["user", "assistant", "user"], &[1, 1, 1], &[0, 1, 0]),
        (&["a", "b", "c"], &[1, 1, 1], &[0, 1, 0]),
        (&["K-7"], &[1, 3, 2], &[0, 1, 0]),
        (&["Monday"], &[1, 2, 3], &[0, 1, 0]),
        (&["x", "z"], &[4, 3, 4, 1, 2], &[0, 2, 2, 1, 0]),
        (&[], &[0, 0], &[0, 0]),
    ];
    for (texts, definitions, repetitions) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> =
            texts.iter().map(|text| ByteArray::from(text.as_bytes().to_vec())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(definitions), Some(repetitions)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn fields_that_a_structure_of_parquet_lacks_are_left_out() {
    let folder = project(&[("a.parquet", &padded())]);
    let dataset = read(folder.path(), &["data.train=a.parquet", WHOLE]).unwrap();
    assert_eq!(dataset.problems, []);
    let of_messages = |row: &Row| -> Vec<Map<String, Value>> {
        row.example.messages().unwrap_or_default().into_iter().map(|message| message.fields).collect()
    };
    let fields: Vec<Value> =
        dataset.rows.all().iter().map(|row| serde_json::to_value(of_messages(row)).unwrap()).collect();
    assert_eq!(
        fields,
        [
            json!([{"names": ["x", null, "z"]}, {"call": {"item": "K-7"}}]),
            json!([{"call": {"day": "Monday"}, "names": []}]),
        ]
    );
}

#[test]
fn sources_have_shares_and_limits() {
    let lines = |letter: char, count: usize| {
        let lines: Vec<String> = (0..count).map(|number| format!("{letter}{number}\n")).collect();
        lines.concat().into_bytes()
    };
    let folder = project(&[
        ("a.txt", &lines('a', 10)),
        ("b.txt", &lines('b', 5000)),
        ("c.txt", &lines('c', 100)),
        ("d.txt", &lines('d', 40)),
    ]);
    let train = "data.train=[\"a.txt\", { path = \"b.txt\", rows = 1000 }, { path = \"c.txt\", share = 0.5 }, \
                 { path = \"d.txt\", share = 2 }]";
    let dataset = read(folder.path(), &[train, WHOLE]).unwrap();
    let count = |letter: char| texts(&dataset).iter().filter(|text| text.starts_with(letter)).count();
    assert_eq!(['a', 'b', 'c', 'd'].map(count), [10, 1000, 50, 80]);
    assert!(dataset.rows.all().iter().enumerate().all(|(index, row)| row.index == index));
    assert_eq!(
        dataset.notices,
        [
            "b.txt: 1,000 of 5,000 rows are used (rows = 1000)",
            "c.txt: 50 of 100 rows are used (share = 0.5)",
            "d.txt: 40 training rows are used 80 times in all (share = 2)",
        ]
    );
    assert_eq!(read(folder.path(), &[train, WHOLE]).unwrap().rows.heads(), dataset.rows.heads());
    let split = read(folder.path(), &[train, "data.eval=0.1"]).unwrap();
    let held_out: Vec<String> = split
        .rows
        .all()
        .iter()
        .filter(|row| row.split == Split::Eval)
        .map(|row| row.example.plain_text())
        .collect();
    assert_eq!(held_out.len(), 110);
    let rows = split.rows.all();
    let trained = rows.iter().filter(|row| row.split == Split::Train);
    assert!(trained.map(|row| row.example.plain_text()).all(|text| !held_out.contains(&text)));
}

#[test]
fn files_of_unknown_kinds_are_told_the_known_ones() {
    let error = refused("a.xlsx", b"x");
    assert!(error.contains("not a known kind of dataset") && error.contains(KNOWN), "{error}");
}
