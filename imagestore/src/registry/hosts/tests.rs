//! Settings as containerd's users have them.

use proptest::prelude::*;

use super::*;

fn bases(hosts: &[Host]) -> Vec<Option<&str>> {
    hosts.iter().map(|host| host.base.as_ref().map(Url::as_str)).collect()
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_registry_last() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."https://z.example"]
        capabilities = ["pull", "Resolve"]
        [host."http://a.example:5000/proxy"]
        capabilities = ["pull"]
        skip_verify = true
        override_path = true
        [host."b.example/v2"]
        [host."https://c.example/path/"]
        dial_timeout = "1s"
    "#;
    let hosts = parse(text).unwrap();
    assert_eq!(
        bases(&hosts),
        [
            Some("https://z.example/v2/"),
            Some("http://a.example:5000/proxy/"),
            Some("https://b.example/v2/"),
            Some("https://c.example/path/v2/"),
            Some("https://registry-1.docker.io/v2/"),
        ]
    );
    assert_eq!(hosts[0].capabilities, Some([true, true, false]));
    assert_eq!(hosts[1].capabilities, Some([true, false, false]));
    assert!(hosts[1].skip_verify && !hosts[0].skip_verify);
    assert_eq!(hosts.iter().map(|host| host.own).collect::<Vec<_>>(), [false, false, false, false, true]);
}

#[test]
fn certificates_and_headers_are_read_in_all_their_forms() {
    let text = r#"
        ca = "/etc/ca.pem"
        client = "both.pem"
        [header]
        x-one = "1"
        [host."https://m.example"]
        ca = ["a.pem", "b.pem"]
        client = [["c.pem", "c.key"]]
        [host."https://m.example".header]
        x-many = ["1", "2"]
        [host."https://n.example"]
        client = ["c.pem", ["d.pem", ""]]
    "#;
    let hosts = parse(text).unwrap();
    assert_eq!(hosts[2].base, None);
    assert_eq!(hosts[2].ca, [PathBuf::from("/etc/ca.pem")]);
    assert_eq!(hosts[2].client, [("both.pem".into(), None)]);
    assert_eq!(hosts[2].headers["x-one"], "1");
    assert_eq!(hosts[0].ca, [PathBuf::from("a.pem"), "b.pem".into()]);
    assert_eq!(hosts[0].client, [("c.pem".into(), Some("c.key".into()))]);
    assert_eq!(hosts[0].headers.get_all("x-many").iter().count(), 2);
    assert_eq!(hosts[1].client, [("c.pem".into(), None), ("d.pem".into(), None)]);
}

#[test]
fn bad_settings_say_what_is_wrong() {
    for (text, words) in [
        ("server = 5", "server is no string"),
        ("host = 5", "host is no table"),
        ("[host.\"ftp://x\"]", "ftp"),
        ("[host.\"https://u:p@x\"]", "more than"),
        ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
        ("[host.\"https://x\"]\nclient = [[\"a\", \"b\", \"c\"]]", "no more files"),
        ("[host.\"https://x\".header]\nx = \"secret\\u0000\"", "malformed"),
        ("[host", "host"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(words) || text == "[host", "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn the_folder_of_a_registry_wins_over_the_default() {
    let root = tempfile::tempdir().unwrap();
    assert!(load(root.path(), "x.example").unwrap().is_empty());
    let write = |folder: &str, server: &str| {
        fs::create_dir(root.path().join(folder)).unwrap();
        fs::write(root.path().join(folder).join(FILE), format!("server = \"{server}\"")).unwrap();
    };
    let found = |domain: &str| load(root.path(), domain).unwrap().remove(0).base.unwrap().to_string();
    write("_default", "default");
    assert_eq!(found("x.example:5000"), "https://default/v2/");
    write("x.example:5000", "plain");
    assert_eq!(found("x.example:5000"), "https://plain/v2/");
    write("x.example_5000_", "escaped");
    assert_eq!(found("x.example:5000"), "https://escaped/v2/");
    assert_eq!(found("x.example"), "https://default/v2/");
}

#[test]
fn files_are_found_beside_the_settings_and_missed_by_name() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("x.example");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(FILE), "ca = \"ca.pem\"\nclient = [[\"c.pem\", \"c.key\"]]").unwrap();
    let error = load(root.path(), "x.example").unwrap_err().to_string();
    assert!(error.contains("ca.pem") && error.contains("No such file"), "{error}");
    for (name, text) in [("ca.pem", "CA"), ("c.pem", "CERT"), ("c.key", "KEY")] {
        fs::write(folder.join(name), text).unwrap();
    }
    let entries = load(root.path(), "x.example").unwrap();
    assert_eq!(entries[0].tls.ca, [b"CA\n"]);
    assert_eq!(entries[0].tls.clients[0].pem, b"CERT\nKEY\n");
    assert!(!format!("{entries:?}").contains("KEY"));
    // As Docker has it: no list, but certificates.
    fs::remove_file(folder.join(FILE)).unwrap();
    for (from, to) in [("ca.pem", "ca.crt"), ("c.pem", "client.cert"), ("c.key", "client.key")] {
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    let entries = load(root.path(), "x.example").unwrap();
    assert_eq!(entries[0].base, None);
    assert_eq!(entries[0].tls.ca, [b"CA\n"]);
    assert_eq!(entries[0].tls.clients[0].pem, b"CERT\nKEY\n");
}

proptest! {
    #[test]
    fn reading_any_settings_ends_without_panic(text in "(host|server|ca|client|header|\\[|\\]|\"|=|\\.|https://|x|,|\n| |\\PC)*") {
        let _ = parse(&text);
    }
}
