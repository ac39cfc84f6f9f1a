package install_test

import (
	"strings"
	"testing"
)

func TestEncryptionReachesTheServers(t *testing.T) {
	all := objects(t, "encryption: {provider: kms, secretName: volume-keys, kms: {socketDir: /run/kms, socket: plugin.sock}}")
	for object, words := range map[string][]string{
		"ConfigMap keelson-config": {"encryption:", "provider: kms", "keyDir: /etc/keelson-keys", "endpoint: unix:///run/kms/plugin.sock"},
		"DaemonSet keelson-server": {"mountPath: /etc/keelson-keys, readOnly: true", "secretName: volume-keys", "optional: true", "mountPath: /run/kms}", "path: /run/kms,"},
	} {
		for _, w := range words {
			if !strings.Contains(all[object].text, w) {
				t.Errorf("%s doesn't say %q:\n%s", object, w, all[object].text)
			}
		}
	}
	if text := objects(t, "")["ConfigMap keelson-config"].text; text == "" || strings.Contains(text, "provider:") {
		t.Errorf("without encryption:\n%s", text)
	}
	for values, word := range map[string]string{
		"encryption: {provider: file}":                      "encryption.secretName",
		"encryption: {provider: kms}":                       "encryption.kms.socketDir",
		"encryption: {provider: kms, secretName: keys}":     "encryption.kms.socketDir",
		"encryption: {provider: vault}":                     "encryption.provider",
		"encryption: {secretName: Keys}":                    "encryption.secretName",
		"encryption: {kms: {socketDir: run/kms}}":           "encryption.kms.socketDir",
		"encryption: {kms: {socketDir: /a, socket: b/c.d}}": "encryption.kms.socket",
	} {
		if _, err := chart(t).Files(parsed(t, values), options); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", values, err)
		}
	}
}
