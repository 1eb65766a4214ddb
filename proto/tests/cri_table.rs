//! Holds the compiled descriptors against `cri-v1.tsv`, the table of the whole CRI wire interface.
//!
//! Both are turned into rows of the same form, and every row that only one of them has is named: a changed
//! number shows as one row missing and one row too many.

use std::{collections::BTreeSet, fmt::Write as _};

use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
};

const TABLE: &str = include_str!("../cri-v1.tsv");
const CRI: &str = "runtime.v1";

fn pool() -> DescriptorPool {
    DescriptorPool::decode(sampan_proto::DESCRIPTORS).expect("DESCRIPTORS is a FileDescriptorSet")
}

fn file(pool: &DescriptorPool, name: &str) -> FileDescriptor {
    pool.get_file_by_name(name).unwrap_or_else(|| panic!("{name} is not in DESCRIPTORS"))
}

/// A name without the package: `runtime.v1.SecurityProfile.ProfileType` is `SecurityProfile.ProfileType`.
fn local(full_name: &str) -> &str {
    full_name.strip_prefix(CRI).and_then(|name| name.strip_prefix('.')).unwrap_or(full_name)
}

/// The rows of the table, without its heading and the empty cells at the end of a row.
fn table_rows(table: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for line in table.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        assert!(rows.insert(line.to_owned()), "the table has this row twice: {line}");
    }
    rows
}

/// The rows that the descriptors of one file would have in the table.
fn descriptor_rows(file: &FileDescriptor) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for service in file.services() {
        for rpc in service.methods() {
            let streamed = |on: bool| if on { "stream " } else { "" };
            rows.insert(format!(
                "rpc\t{}\t{}\t\t{}{}\t{}{}",
                service.name(),
                rpc.name(),
                streamed(rpc.is_client_streaming()),
                local(rpc.input().full_name()),
                streamed(rpc.is_server_streaming()),
                local(rpc.output().full_name()),
            ));
        }
    }
    file.messages().for_each(|message| message_rows(&message, &mut rows));
    file.enums().for_each(|values| enum_rows(&values, &mut rows));
    rows
}

/// The table names a message itself only when it has no fields.
fn message_rows(message: &MessageDescriptor, rows: &mut BTreeSet<String>) {
    let name = local(message.full_name());
    if message.fields().len() == 0 {
        rows.insert(format!("message\t{name}"));
    }
    for field in message.fields() {
        let row = format!(
            "field\t{name}\t{}\t{}\t{}\t{}",
            field.name(),
            field.number(),
            type_of(&field),
            label(&field)
        );
        rows.insert(row.trim_end().to_owned());
    }
    message
        .child_messages()
        .filter(|child| !child.is_map_entry())
        .for_each(|child| message_rows(&child, rows));
    message.child_enums().for_each(|values| enum_rows(&values, rows));
}

fn enum_rows(values: &EnumDescriptor, rows: &mut BTreeSet<String>) {
    for value in values.values() {
        rows.insert(format!("enum\t{}\t{}\t{}", local(values.full_name()), value.name(), value.number()));
    }
}

fn type_of(field: &FieldDescriptor) -> String {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!("a map's entries are messages") };
        let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        return format!("map<{},{}>", type_of(&key), type_of(&value));
    }
    match field.kind() {
        Kind::Message(message) => local(message.full_name()).to_owned(),
        Kind::Enum(values) => local(values.full_name()).to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

/// Shows what proto3 allows and CRI doesn't use too, so that it would be found here.
fn label(field: &FieldDescriptor) -> String {
    let mut label = String::new();
    if field.cardinality() == Cardinality::Repeated && !field.is_map() {
        label.push_str("repeated");
    }
    if field.field_descriptor_proto().proto3_optional() {
        label.push_str("optional");
    }
    if let Some(oneof) = field.containing_oneof().filter(|oneof| !oneof.is_synthetic()) {
        write!(label, "oneof {}", oneof.name()).expect("writing to a string");
    }
    label
}

/// A line for each row that only one side has; empty when the two are the same.
fn differences(table: &BTreeSet<String>, compiled: &BTreeSet<String>) -> String {
    let mut lines = String::new();
    for row in table.difference(compiled) {
        writeln!(lines, "only in cri-v1.tsv:   {}", row.replace('\t', " | ")).expect("writing to a string");
    }
    for row in compiled.difference(table) {
        writeln!(lines, "only in the protobuf: {}", row.replace('\t', " | ")).expect("writing to a string");
    }
    lines
}

#[test]
fn the_protobuf_is_the_table_row_by_row() {
    let pool = pool();
    let (table, compiled) = (table_rows(TABLE), descriptor_rows(&file(&pool, "runtime/v1/api.proto")));
    let differences = differences(&table, &compiled);
    assert!(differences.is_empty(), "runtime/v1/api.proto differs from its table:\n{differences}");
    assert_eq!(table.iter().filter(|row| row.starts_with("rpc\t")).count(), 43);
}

#[test]
fn a_changed_number_is_named_from_both_sides() {
    let table = table_rows("field\tMount\treadonly\t3\tbool\t\nenum\tProtocol\tTCP\t0\t\t\n");
    let compiled = table_rows("field\tMount\treadonly\t4\tbool\t\nenum\tProtocol\tTCP\t0\t\t\n");
    assert_eq!(
        differences(&table, &compiled),
        "only in cri-v1.tsv:   field | Mount | readonly | 3 | bool\n\
         only in the protobuf: field | Mount | readonly | 4 | bool\n"
    );
}

#[test]
fn every_rpc_and_message_of_cri_has_a_comment() {
    let pool = pool();
    let file = file(&pool, "runtime/v1/api.proto");
    let commented = comment_paths(&file);
    let mut bare: Vec<String> = Vec::new();
    for (path, name) in file
        .messages()
        .map(|message| (message.path().to_vec(), message.full_name().to_owned()))
        .chain(file.services().flat_map(|service| {
            service.methods().map(|rpc| (rpc.path().to_vec(), rpc.full_name().to_owned())).collect::<Vec<_>>()
        }))
    {
        if !commented.contains(&path) {
            bare.push(name);
        }
    }
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}

fn comment_paths(file: &FileDescriptor) -> BTreeSet<Vec<i32>> {
    let info =
        file.file_descriptor_proto().source_code_info.as_ref().expect("comments are kept in the descriptors");
    let commented = info.location.iter().filter(|location| !location.leading_comments().trim().is_empty());
    commented.map(|location| location.path.clone()).collect()
}

#[test]
fn the_descriptors_have_the_services_of_sampan_too() {
    let pool = pool();
    let services: BTreeSet<String> = pool.services().map(|service| service.full_name().to_owned()).collect();
    for service in ["BuildService", "ContainerService", "ImageService", "MetricsService", "SystemService"] {
        assert!(
            services.contains(&format!("sampan.v1.{service}")),
            "sampan.v1.{service} is missing: {services:?}"
        );
    }
    let files: BTreeSet<String> = pool.files().map(|file| file.name().to_owned()).collect();
    for name in ["build", "container", "image", "metrics", "system"] {
        assert!(files.contains(&format!("sampan/v1/{name}.proto")), "{name}.proto is missing: {files:?}");
    }
}
