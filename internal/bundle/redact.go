package bundle

import (
	"bytes"
	"regexp"
	"strings"
)

// gone stands where a secret was.
const gone = "[REDACTED]"

// Redactor takes secrets out of text: those that it was told, and what looks like one.
type Redactor struct {
	known [][]byte
}

// minSecret is the length of the shortest text that is taken for a secret; a shorter one would be found everywhere.
const minSecret = 6

// NewRedactor returns one that also takes out these texts, wherever they stand.
func NewRedactor(known ...string) *Redactor {
	r := &Redactor{}
	for _, k := range known {
		if k = strings.TrimSpace(k); len(k) >= minSecret {
			r.known = append(r.known, []byte(k))
		}
	}
	return r
}

// forms are what secrets look like. Of a match the groups "keep" stay.
var forms = []*regexp.Regexp{
	// Private keys.
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`),
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*`), // one that was cut off
	// Join and API tokens: K1 or KA1, the CA's hash, id and secret.
	regexp.MustCompile(`\bKA?1[0-9A-Za-z+/=_-]{16,}::[0-9A-Za-z]+\.[0-9A-Za-z_-]+`),
	// What a Kubernetes service account shows.
	regexp.MustCompile(`\beyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}`),
	regexp.MustCompile(`(?i)(?P<keep>\b(?:bearer|basic)\s+)[0-9A-Za-z+/=._~-]{8,}`),
	// A user's password in a URL.
	regexp.MustCompile(`(?P<keep>[a-z][a-z0-9+.-]*://[^\s/:@"']*:)[^\s/@"']+(?P<keep2>@)`),
	// A name that says what it is, in YAML, JSON, a command line or an environment. TokenFile and the like name files.
	regexp.MustCompile(`(?i)(?P<keep>["']?[\w.-]*(?:token|secret|password|passwd|passphrase|credentials?|privatekey|apikey|accesskey)["']?\s*[:=]\s*)(?:"(?:[^"\\]|\\.)+"|'[^']+'|[^\s"',;{}\[\]&]+)`),
	regexp.MustCompile(`(?i)(?P<keep>--[\w-]*(?:token|secret|password|passphrase)(?:\s+|\x00))[^\s\x00-][^\s\x00]*`),
}

// Redact returns the text without secrets, and how many there were.
func (r *Redactor) Redact(text []byte) ([]byte, int) {
	n := 0
	for _, k := range r.known {
		if c := bytes.Count(text, k); c > 0 {
			n += c
			text = bytes.ReplaceAll(text, k, []byte(gone))
		}
	}
	for _, f := range forms {
		text = f.ReplaceAllFunc(text, func(match []byte) []byte {
			if bytes.Contains(match, []byte(gone)) {
				return match
			}
			n++
			return replaced(f, match)
		})
	}
	return text, n
}

// replaced is a match of a form with all but what it keeps taken out.
func replaced(f *regexp.Regexp, match []byte) []byte {
	m := f.FindSubmatch(match)
	var before, after []byte
	if i := f.SubexpIndex("keep"); i > 0 {
		before = m[i]
	}
	if i := f.SubexpIndex("keep2"); i > 0 {
		after = m[i]
	}
	return append(append(bytes.Clone(before), gone...), after...)
}
