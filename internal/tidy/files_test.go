package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxLines is how long a Go file may get that no program wrote.
const maxLines = 700

// file is a text file of the repository; path is relative to its root.
type file struct {
	path, text string
}

func (f file) isGo() bool   { return strings.HasSuffix(f.path, ".go") }
func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func (f file) generated() bool {
	head, _, _ := strings.Cut(f.text, "\npackage ")
	return generatedMark.MatchString(head)
}

var generatedMark = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// repository returns the text files, without what is built and what git keeps.
func repository(t *testing.T) []file {
	t.Helper()
	const root = "../.."
	var out []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch {
			case rel == ".git", rel == "bin", rel == "dist", path.Base(rel) == "testdata":
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || rel == ".git" || rel == "go.sum" || rel == "LICENSE" || strings.HasSuffix(rel, ".test") {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if utf8.Valid(b) {
			out = append(out, file{filepath.ToSlash(rel), string(b)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d files found: the walk doesn't start at the repository's root", len(out))
	}
	return out
}

// goFiles returns the Go files that people write.
func goFiles(t *testing.T) []file {
	t.Helper()
	var out []file
	for _, f := range repository(t) {
		if f.isGo() && !f.generated() {
			out = append(out, f)
		}
	}
	return out
}

func TestFilesAreShort(t *testing.T) {
	for _, f := range goFiles(t) {
		if n := strings.Count(f.text, "\n"); n > maxLines {
			t.Errorf("%s has %d lines; %d is the limit: split it where its story has a turn", f.path, n, maxLines)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range repository(t) {
		if !f.isGo() || f.isTest() {
			continue
		}
		a, err := parser.ParseFile(token.NewFileSet(), f.path, f.text, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		dir := path.Dir(f.path)
		documented[dir] = documented[dir] || a.Doc != nil && opensWell(a, f)
	}
	for dir, ok := range documented {
		if !ok && !onlyGenerated(t, dir) {
			t.Errorf("%s: no package comment: say what the package is for, its invariants and the goroutines that it owns", dir)
		}
	}
}

// opensWell: a package comment starts with the package's name, a command's with its own.
func opensWell(a *ast.File, f file) bool {
	text := a.Doc.Text()
	if a.Name.Name == "main" {
		return strings.TrimSpace(text) != ""
	}
	return strings.HasPrefix(text, "Package "+a.Name.Name+" ")
}

func onlyGenerated(t *testing.T, dir string) bool {
	t.Helper()
	for _, f := range goFiles(t) {
		if path.Dir(f.path) == dir {
			return false
		}
	}
	return true
}

// Names that say nothing about what a package is for.
var bannedPackages = []string{"util", "utils", "common", "helper", "helpers", "types", "pkg", "misc", "base", "shared"}

func TestPackagesHaveMeaningfulNames(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, part := range strings.Split(path.Dir(f.path), "/") {
			if in(bannedPackages, part) {
				t.Errorf("%s: a package named %q says nothing: name it after what it is for", f.path, part)
			}
		}
	}
}

// bannedWords must not stand in any file. The patterns are put together so that this file passes.
var bannedWords = []struct {
	pattern *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`(^|[^\w.])/wo` + `rk/`), "a path of one machine"},
	{regexp.MustCompile(`/ro` + `ot/`), "a path of one machine"},
	{regexp.MustCompile(`/ho` + `me/\w+/`), "a path of one machine"},
	{regexp.MustCompile(`(proxy|sum)\.gol` + `ang\.org|deb\.deb` + `ian\.org|registry\.npm` + `js\.org|pypi\.o` + `rg`), "the host of a package registry"},
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b(?:\(#\d+\))?`), "work left undone: do it, or name its issue, as in TO" + "DO(#12)"},
}

var withIssue = regexp.MustCompile(`\(#\d+\)$`)

func TestBannedWords(t *testing.T) {
	for _, f := range repository(t) {
		if f.isGo() && f.generated() {
			continue
		}
		for n, line := range strings.Split(f.text, "\n") {
			for _, b := range bannedWords {
				for _, hit := range b.pattern.FindAllString(line, -1) {
					if !withIssue.MatchString(hit) {
						t.Errorf("%s:%d: %q: %s", f.path, n+1, hit, b.why)
					}
				}
			}
		}
	}
}
