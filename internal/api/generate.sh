#!/bin/sh
# Generates keelsonv1/ from proto/. Needs protoc (Debian: protobuf-compiler and libprotobuf-dev); the plugins
# are built from the module's own versions.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN="$bin" go install google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
PATH="$bin:$PATH" protoc -I proto \
	--go_out=. --go_opt=module=keelson.io/keelson/internal/api \
	--connect-go_out=. --connect-go_opt=module=keelson.io/keelson/internal/api,simple \
	proto/keelson/v1/*.proto
