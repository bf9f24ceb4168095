//! Pickles written by hand, one for each form.

use proptest::prelude::*;

use super::*;
use crate::store::zodb::Oid;

/// How a value looks in Python, about.
fn shown(pickles: &Pickles<'_>, id: ValueId, depth: usize) -> String {
    if depth == 0 {
        return "..".to_owned();
    }
    let all =
        |ids: &[ValueId]| ids.iter().map(|id| shown(pickles, *id, depth - 1)).collect::<Vec<_>>().join(", ");
    match pickles.value(id) {
        Value::None => "None".to_owned(),
        Value::Bool(is) => is.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => format!("{number}u"),
        Value::BigInt(bytes) => format!("big {}", bytes.escape_ascii()),
        Value::Float(number) => format!("{number:?}"),
        Value::Bytes(bytes) => format!("b'{}'", bytes.escape_ascii()),
        Value::Str(bytes) => format!("s'{}'", bytes.escape_ascii()),
        Value::Text(bytes) => format!("u'{}'", bytes.escape_ascii()),
        Value::Tuple(_) => format!("({})", all(pickles.tuple(id).unwrap())),
        Value::List(_) => format!("[{}]", all(pickles.list(id).unwrap())),
        Value::Dict(_) => {
            let pairs = pickles.dict(id).unwrap().map(|(key, value)| all(&[key]) + ": " + &all(&[value]));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Set(list) => format!("set({})", all(pickles.arena.list(list))),
        Value::Class(_) => pickles.class(id).unwrap().to_string(),
        Value::Call(_) => {
            let call = pickles.call(id).unwrap();
            let state = call.state.map(|state| format!(" with {}", all(&[state]))).unwrap_or_default();
            format!("call {} {}{state}", all(&[call.callable]), all(&[call.args]))
        }
        Value::Persistent(named) => format!("<{}>", all(&[named])),
    }
}

/// The first pickle of a record as it looks in Python.
fn first(record: &[u8]) -> Result<String, PickleError> {
    let mut pickles = Pickles::new(record);
    let id = pickles.read_next()?;
    assert!(pickles.is_at_end(), "{record:?} goes on at {}", pickles.at());
    Ok(shown(&pickles, id, 8))
}

#[track_caller]
fn check(cases: &[(&[u8], &str)]) {
    for (record, expected) in cases {
        assert_eq!(first(record).as_deref(), Ok(*expected), "{}", record.escape_ascii());
    }
}

#[test]
fn scalars_of_all_protocols() {
    check(&[
        (b"N.", "None"),
        (b"\x80\x02\x88.", "true"),
        (b"\x80\x02\x89.", "false"),
        (b"I01\n.", "true"),
        (b"I00\n.", "false"),
        (b"I-7\n.", "-7"),
        (b"I5000000000\n.", "5000000000"),
        (b"K\xff.", "255"),
        (b"M\x00\x01.", "256"),
        (b"J\xfe\xff\xff\xff.", "-2"),
        (b"L5000000000L\n.", "5000000000"),
        (b"L9223372036854775808L\n.", "9223372036854775808u"),
        (b"\x8a\x00.", "0"),
        (b"\x8a\x05\x00\xf2\x05\x2a\x01.", "5000000000"),
        (b"\x8a\x01\xff.", "-1"),
        (b"\x8b\x02\x00\x00\x00\x00\x01.", "256"),
        (b"\x8a\x0a\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a.", r"big \x01\x02\x03\x04\x05\x06\x07\x08\t\n"),
        (b"F1.5\n.", "1.5"),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", "1.5"),
    ]);
}

#[test]
fn byte_strings_and_texts_of_all_protocols() {
    check(&[
        (b"U\x03a\x00\xff.", r"s'a\x00\xff'"),
        (b"T\x03\x00\x00\x00abc.", "s'abc'"),
        (b"\x80\x03C\x02ab.", "b'ab'"),
        (b"\x80\x03B\x02\x00\x00\x00ab.", "b'ab'"),
        (b"\x80\x04\x8e\x02\x00\x00\x00\x00\x00\x00\x00ab.", "b'ab'"),
        (b"X\x02\x00\x00\x00\xc3\xa9.", r"u'\xc3\xa9'"),
        (b"\x80\x04\x8c\x02ab.", "u'ab'"),
        (b"\x80\x04\x8d\x02\x00\x00\x00\x00\x00\x00\x00ab.", "u'ab'"),
        // A lone surrogate, which Python writes and Rust has no text for.
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", r"u'\xed\xa0\x80'"),
    ]);
}

#[test]
fn containers_of_all_protocols() {
    check(&[
        (b").", "()"),
        (b"(t.", "()"),
        (b"(K\x01K\x02K\x03K\x04t.", "(1, 2, 3, 4)"),
        (b"K\x01\x85.", "(1)"),
        (b"K\x01K\x02\x86.", "(1, 2)"),
        (b"K\x01K\x02K\x03\x87.", "(1, 2, 3)"),
        (b"((K\x01tK\x02t.", "((1), 2)"),
        (b"].", "[]"),
        (b"(K\x01K\x02l.", "[1, 2]"),
        (b"]K\x01a.", "[1]"),
        (b"](K\x01K\x02e(e.", "[1, 2]"),
        (b"}.", "{}"),
        (b"(K\x01K\x02d.", "{1: 2}"),
        (b"}K\x01K\x02s.", "{1: 2}"),
        (b"}(K\x01K\x02K\x03K\x04u.", "{1: 2, 3: 4}"),
        (b"\x80\x04\x8f(K\x01K\x02\x90.", "set(1, 2)"),
        (b"\x80\x04(K\x01\x91.", "set(1)"),
    ]);
}

#[test]
fn the_stack_is_shuffled_and_values_are_recalled() {
    check(&[
        (b"K\x01K\x020.", "1"),
        (b"K\x01(K\x02K\x031.", "1"),
        // A mark is popped as a value is.
        (b"K\x01(0.", "1"),
        (b"K\x012\x86.", "(1, 1)"),
        (b"K\x07q\x05h\x05\x86.", "(7, 7)"),
        (b"K\x07r\x00\x02\x00\x00j\x00\x02\x00\x00\x86.", "(7, 7)"),
        (b"I7\np12\ng12\n\x86.", "(7, 7)"),
        (b"\x80\x04K\x07\x94K\x08\x94\x86h\x01\x86.", "((7, 8), 8)"),
        (b"\x80\x04\x95\x03\x00\x00\x00\x00\x00\x00\x00K\x07.", "7"),
        // What is memorised is the list, not what was in it.
        (b"]q\x00h\x00K\x01a\x86.", "([1], [1])"),
        // A list that holds itself.
        (b"]q\x00h\x00a.", "[[[[[[[[..]]]]]]]]"),
    ]);
}

#[test]
fn classes_and_calls_are_names_and_values() {
    check(&[
        (b"cos\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"cos\nsystem\n(U\x02lstR.", "call os.system (s'ls')"),
        (b"ca\nB\n)\x81}b.", "call a.B () with {}"),
        (b"(K\x01ia\nB\n.", "call a.B (1)"),
        (b"(ca\nB\nK\x01o.", "call a.B (1)"),
        (b"P12\n.", "<s'12'>"),
        (b"K\x01Q.", "<1>"),
        (b"ca\x1bb\nC\x07\n.", r"a\u{1b}b.C\u{7}"),
    ]);
    let long = [b"c", "x".repeat(200).as_bytes(), b"\ny\n."].concat();
    assert_eq!(first(&long).unwrap().len(), 64 + ".y".len());
}

#[test]
fn a_record_shares_what_it_memorises_between_its_pickles() {
    let mut pickles = Pickles::new(b"ca\nB\nq\x00.h\x00\x85.");
    let class = pickles.read_next().unwrap();
    assert_eq!((shown(&pickles, class, 2), pickles.at()), ("a.B".to_owned(), 8));
    assert!(!pickles.is_at_end());
    let state = pickles.read_next().unwrap();
    assert_eq!(shown(&pickles, state, 2), "(a.B)");
    assert!(pickles.is_at_end());
    assert_eq!(pickles.read_next(), Err(PickleError::Cut { at: 12, what: "a pickle" }));
}

/// The bytes that the first pickle of a record stands for.
fn bytes(record: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut pickles = Pickles::new(record);
    let id = pickles.read_next().unwrap();
    pickles.bytes(id)
}

#[test]
fn bytes_have_many_forms() {
    for record in [
        &b"U\x02a\xff."[..],
        b"T\x02\x00\x00\x00a\xff.",
        b"C\x02a\xff.",
        b"c_codecs\nencode\n(X\x03\x00\x00\x00a\xc3\xbfX\x06\x00\x00\x00latin1tR.",
        b"c_codecs\nencode\nX\x03\x00\x00\x00a\xc3\xbfU\x07latin-1\x86R.",
        b"czodbpickle\nbinary\nU\x02a\xff\x85\x81.",
        b"czodbpickle\nbinary\nC\x02a\xff\x85R.",
        b"ccopy_reg\n_reconstructor\n(czodbpickle\nbinary\nc__builtin__\nstr\nU\x02a\xfftR.",
        b"c__builtin__\nbytes\nU\x02a\xff\x85R.",
    ] {
        assert_eq!(bytes(record).as_deref(), Some(&b"a\xff"[..]), "{}", record.escape_ascii());
    }
    for record in [&b"c__builtin__\nbytes\n)R."[..], b"cbuiltins\nbytes\n)R.", b"czodbpickle\nbinary\n)\x81."]
    {
        assert_eq!(bytes(record).as_deref(), Some(&b""[..]), "{}", record.escape_ascii());
    }
}

#[test]
fn other_calls_are_no_bytes() {
    for record in [
        // Text is none.
        &b"X\x01\x00\x00\x00a."[..],
        // Another encoding; a character that Latin-1 lacks; no UTF-8.
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf16\x86R.",
        b"c_codecs\nencode\nX\x02\x00\x00\x00\xc4\x80X\x06\x00\x00\x00latin1\x86R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00\xffX\x06\x00\x00\x00latin1\x86R.",
        b"c_codecs\ndecode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.",
        b"ccopy_reg\n_reconstructor\n(ca\nB\nc__builtin__\nstr\nU\x01atR.",
        b"cos\nsystem\nU\x01a\x85R.",
        b"czodbpickle\nbinary\nK\x01\x85R.",
        // Who knows what the state would make of it.
        b"czodbpickle\nbinary\nU\x01a\x85\x81}b.",
    ] {
        assert_eq!(bytes(record), None, "{}", record.escape_ascii());
    }
}

const OID: Oid = Oid::from_raw(0x2a);

/// The reference that the first pickle of a record is, by a test of its own on it.
#[track_caller]
fn check_reference(record: &[u8], expected: Option<Reference<'_>>) {
    let mut pickles = Pickles::new(record);
    let id = pickles.read_next().unwrap();
    assert_eq!(pickles.reference(id), expected, "{}", record.escape_ascii());
}

#[test]
fn references_have_many_forms() {
    let class = Some(ClassName { module: "m", name: "C" });
    let strong = |class| Some(Reference::Strong { oid: OID, class });
    check_reference(b"C\x08\0\0\0\0\0\0\0\x2aQ.", strong(None));
    check_reference(b"U\x08\0\0\0\0\0\0\0\x2aQ.", strong(None));
    check_reference(b"P\0\0\0\0\0\0\0\x2a\n.", strong(None));
    check_reference(b"(C\x08\0\0\0\0\0\0\0\x2acm\nC\ntQ.", strong(class));
    check_reference(b"(X\x08\0\0\0\0\0\0\0\0\0\0\x2acm\nC\ntQ.", strong(class));
    check_reference(
        b"c_codecs\nencode\nX\x08\0\0\0\0\0\0\0\0\0\0\x2aX\x06\0\0\0latin1\x86Rcm\nC\n\x86Q.",
        strong(class),
    );
    check_reference(b"C\x08\0\0\0\0\0\0\0\x2aU\x01mX\x01\0\0\0C\x86\x86Q.", strong(class));
    check_reference(b"C\x08\0\0\0\0\0\0\0\x2aN\x86Q.", strong(None));
    check_reference(b"](U\x01wC\x08\0\0\0\0\0\0\0\x2a\x85eQ.", Some(Reference::Weak { oid: OID }));
    check_reference(b"]C\x08\0\0\0\0\0\0\0\x2aaQ.", Some(Reference::Weak { oid: OID }));
    let foreign = Some(Reference::Foreign { database: b"db", oid: OID });
    check_reference(b"](X\x01\0\0\0wC\x08\0\0\0\0\0\0\0\x2aU\x02db\x86eQ.", foreign);
    check_reference(b"](X\x01\0\0\0nU\x02dbC\x08\0\0\0\0\0\0\0\x2a\x86eQ.", foreign);
    check_reference(b"](X\x01\0\0\0mX\x02\0\0\0dbC\x08\0\0\0\0\0\0\0\x2acm\nC\n\x87eQ.", foreign);
    let high = Some(Reference::Strong { oid: Oid::from_raw(u64::MAX), class: None });
    check_reference(b"X\x10\0\0\0\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbfQ.", high);
}

#[test]
fn what_is_no_reference_is_none() {
    for record in [
        &b"C\x08\0\0\0\0\0\0\0\x2a."[..],
        b"NQ.",
        b"C\x07\0\0\0\0\0\0\0Q.",
        b"C\x09\0\0\0\0\0\0\0\0\x2aQ.",
        b"X\x08\0\0\0\0\0\0\0\0\0\xc4\x80Q.",
        b")Q.",
        b"]Q.",
        b"K\x2acm\nC\n\x86Q.",
        b"](U\x01xC\x08\0\0\0\0\0\0\0\x2a\x85eQ.",
        b"](U\x01wU\x01we(U\x01weQ.",
        b"C\x08\0\0\0\0\0\0\0\x2aNN\x87Q.",
    ] {
        check_reference(record, None);
    }
}

#[test]
fn what_is_not_whole_is_named_with_its_place() {
    let cut = |at, what| Err(PickleError::Cut { at, what });
    assert_eq!(first(b""), cut(0, "a pickle"));
    assert_eq!(first(b"N"), cut(1, "a pickle"));
    assert_eq!(first(b"NM\x01"), cut(2, "an integer"));
    assert_eq!(first(b"U\x03ab"), cut(2, "a byte string"));
    assert_eq!(first(b"B\xff\xff\xff\xff"), cut(5, "a byte string"));
    assert_eq!(first(b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff."), cut(9, "a byte string"));
    assert_eq!(first(b"cos\nsystem"), cut(4, "the name of a class"));
    assert_eq!(first(b"\x95\x05\0\0\0\0\0\0\0N."), cut(0, "a frame"));
    assert_eq!(first(b"P12"), cut(1, "a persistent id"));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let malformed = |at, what| Err(PickleError::Malformed { at, what });
    for record in
        [&b"."[..], b"0.", b"2.", b"\x85.", b"N\x86.", b"q\x00.", b"Q.", b"R.", b"NR.", b"b.", b"a."]
    {
        let at = record.iter().position(|byte| *byte != b'N').unwrap();
        assert_eq!(first(record), malformed(at, "an opcode has too few values"));
    }
    // Nothing reaches below a mark.
    assert_eq!(first(b"N(\x85."), malformed(2, "an opcode has too few values"));
    assert_eq!(first(b"N("), Err(PickleError::Cut { at: 2, what: "a pickle" }));
    assert_eq!(first(b"N(."), malformed(2, "an opcode has too few values"));
    for record in [&b"t."[..], b"l.", b"d.", b"1.", b"e.", b"u.", b"o.", b"\x90.", b"\x91."] {
        assert_eq!(first(record), malformed(0, "a mark is missing"));
    }
    assert_eq!(first(b"ia\nb\n."), malformed(0, "a mark is missing"));
    assert_eq!(first(b"(o."), malformed(1, "an object has no class"));
    assert_eq!(first(b"(Nd."), malformed(2, "a key has no value"));
    assert_eq!(first(b"}(Nu."), malformed(3, "a key has no value"));
    let holder = "items go into what cannot hold them";
    for record in [&b"](NNu."[..], b"}(Ne.", b"](N\x90."] {
        assert_eq!(first(record), malformed(record.len() - 2, holder), "{}", record.escape_ascii());
    }
    assert_eq!(first(b")Na."), malformed(2, holder));
    assert_eq!(first(b"(Ne."), malformed(2, holder));
    assert_eq!(first(b"](](Ne1\x85."), Ok("([])".to_owned()));
    assert_eq!(first(b"NN."), malformed(2, "the pickle stops with more than one value"));
    assert_eq!(first(b"(N(."), malformed(3, "an opcode has too few values"));
    assert_eq!(first(b"h\x00."), malformed(0, "it recalls what it did not memorise"));
    assert_eq!(first(b"g-1\n."), malformed(0, "a place of what it memorises is no number"));
    assert_eq!(first(b"Ix\n."), malformed(0, "a line is no number"));
    assert_eq!(first(b"L\n."), malformed(0, "a line is no number"));
    assert_eq!(first(b"Fx\n."), malformed(0, "a line is no number"));
    assert_eq!(first(b"T\xff\xff\xff\xff."), malformed(1, "a length is negative"));
    assert_eq!(first(b"\x8b\xff\xff\xff\xff."), malformed(1, "a length is negative"));
    assert_eq!(first(b"\x80\x06N."), malformed(0, "the protocol is newer than 5"));
    assert_eq!(first(b"NN\x93."), malformed(2, "the name of a class is no text"));
    assert_eq!(first(b"c\xff\nb\n."), malformed(0, "the name of a class is too long, or no UTF-8"));
    assert_eq!(first(b"NNb."), malformed(2, "a state goes to what cannot have it"));
    assert_eq!(first(b"ca\nB\n)\x81NbNb."), malformed(10, "a state goes to what cannot have it"));
    for opcode in [b'S', b'V', 0x82, 0x83, 0x84, 0x92, 0x96, 0x97, 0x98, 0xff, 0] {
        assert_eq!(first(&[b'N', opcode, b'.']), Err(PickleError::Opcode { at: 1, opcode }));
    }
}

#[test]
fn everything_that_may_be_many_is_counted() {
    let too_many = |at, what, max| Err(PickleError::TooMany { at, what, max });
    let opcodes = |byte: u8, len: usize| vec![byte; len];
    assert_eq!(first(&opcodes(b'N', OPCODES_MAX + 1)), too_many(OPCODES_MAX, "opcodes", OPCODES_MAX));
    assert_eq!(first(&opcodes(b'(', OPCODES_MAX + 1)), too_many(OPCODES_MAX, "opcodes", OPCODES_MAX));
    let place = "places for what it memorises";
    assert_eq!(first(b"Nr\xff\xff\xff\xff."), too_many(1, place, OPCODES_MAX));
    let line = [b"I".to_vec(), opcodes(b'1', LINE_BYTES_MAX + 1), b"\n.".to_vec()].concat();
    assert_eq!(first(&line), too_many(1, "bytes of a line", LINE_BYTES_MAX));
    let line = [b"I".to_vec(), opcodes(b'1', LINE_BYTES_MAX), b"\n.".to_vec()].concat();
    assert!(first(&line).is_ok_and(|shown| shown.starts_with("big 111")));
    let len = u32::try_from(LINE_BYTES_MAX + 1).unwrap().to_le_bytes();
    let name = [b"X".to_vec(), len.to_vec(), opcodes(b'x', LINE_BYTES_MAX + 1)].concat();
    let class = [name, b"2\x93.".to_vec()].concat();
    let what = "the name of a class is too long, or no UTF-8";
    assert_eq!(first(&class), Err(PickleError::Malformed { at: class.len() - 2, what }));
    // A tuple in a tuple in a tuple: no depth is too much, for nothing recurses.
    let deep = [b"N".to_vec(), opcodes(0x85, OPCODES_MAX - 2), b".".to_vec()].concat();
    assert_eq!(first(&deep).as_deref(), Ok("((((((((..))))))))"));
}

/// Bytes that are mostly opcodes.
fn program() -> impl Strategy<Value = Vec<u8>> {
    let opcodes = b"(.012FIJKLMNPQRTUXabcd}eghijlo]pqrstu)G\n\x00\x01\x80\x81\x85\x86\x87\x88\x8a\x8b\x8c\x8f\x90\x91\x93\x94BC";
    proptest::collection::vec(proptest::sample::select(&opcodes[..]), 0..60)
}

proptest! {
    #[test]
    fn no_program_panics(record in program()) {
        let mut pickles = Pickles::new(&record);
        while let Ok(id) = pickles.read_next() {
            shown(&pickles, id, 4);
            pickles.bytes(id);
            pickles.reference(id);
            prop_assert!(pickles.at() <= record.len());
        }
    }
}
