//! The header of the module and the library say the same.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use sendfile2_sys::module::{Args, COPIED, FEATURE_URING, Query, RELEASED, SEND, VERSION, flags};

#[test]
fn the_header_and_the_library_agree() {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../module");
    let values = [
        ("SENDFILE2_MODULE_VERSION", VERSION),
        ("SENDFILE2_ZC", flags::ZC),
        ("SENDFILE2_POSITION", flags::POSITION),
        ("SENDFILE2_DONTWAIT", flags::DONTWAIT),
        ("SENDFILE2_MORE", flags::MORE),
        ("SENDFILE2_NOSIGNAL", flags::NOSIGNAL),
        ("SENDFILE2_WAIT", flags::WAIT),
        ("SENDFILE2_RELEASED", RELEASED),
        ("SENDFILE2_COPIED", COPIED),
        ("SENDFILE2_FEATURE_URING", FEATURE_URING),
        ("SENDFILE2_IOC_SEND", SEND),
    ];
    let mut fields: Vec<(&str, &str, usize)> =
        vec![("struct sendfile2_args", "", size_of::<Args>())];
    fields.push(("struct sendfile2_query", "", size_of::<Query>()));
    for (name, at) in [
        ("offset", std::mem::offset_of!(Args, offset)),
        ("count", std::mem::offset_of!(Args, count)),
        ("flags", std::mem::offset_of!(Args, flags)),
        ("state", std::mem::offset_of!(Args, state)),
        ("deadline", std::mem::offset_of!(Args, deadline)),
    ] {
        fields.push(("struct sendfile2_args", name, at));
    }
    for (name, at) in [
        ("version", std::mem::offset_of!(Query, version)),
        ("flags", std::mem::offset_of!(Query, flags)),
        ("features", std::mem::offset_of!(Query, features)),
    ] {
        fields.push(("struct sendfile2_query", name, at));
    }

    let mut program = String::from("#include <stddef.h>\n#include \"sendfile2_module.h\"\n");
    for (name, value) in values {
        // As an ioctl's number is: an unsigned int.
        writeln!(program, "_Static_assert((unsigned int)({name}) == {value}u, \"{name}\");")
            .unwrap();
    }
    for (of, name, value) in fields {
        let expression = match name {
            "" => format!("sizeof({of})"),
            name => format!("offsetof({of}, {name})"),
        };
        writeln!(program, "_Static_assert({expression} == {value}, \"{of} {name}\");").unwrap();
    }
    writeln!(program, "_Static_assert(offsetof(struct sendfile2_args, in_fd) == 4, \"in_fd\");")
        .unwrap();
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("header.c");
    std::fs::write(&source, program).unwrap();
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I"])
        .args([&module, &source])
        .output()
        .expect("cc");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The arguments in a submission entry are the structure, descriptors first.
#[test]
fn a_command_is_laid_out_as_the_structure() {
    use std::os::fd::{AsFd, AsRawFd};
    let (a, b) = (std::io::stdin(), std::io::stdout());
    let mut args = Args::default();
    args.offset = 0x0102_0304_0506_0708;
    args.count = 0x1112_1314_1516_1718;
    args.flags = 0x2122_2324;
    args.state = 0x3132_3334;
    args.deadline = 0x4142_4344_4546_4748;
    let bytes = args.command(a.as_fd(), b.as_fd());
    let at = |offset: usize, expected: &[u8]| {
        assert_eq!(&bytes[offset..offset + expected.len()], expected, "at {offset}");
    };
    at(0, &a.as_raw_fd().to_ne_bytes());
    at(4, &b.as_raw_fd().to_ne_bytes());
    at(std::mem::offset_of!(Args, offset), &args.offset.to_ne_bytes());
    at(std::mem::offset_of!(Args, count), &args.count.to_ne_bytes());
    at(std::mem::offset_of!(Args, flags), &args.flags.to_ne_bytes());
    at(std::mem::offset_of!(Args, state), &args.state.to_ne_bytes());
    at(std::mem::offset_of!(Args, deadline), &args.deadline.to_ne_bytes());
}
