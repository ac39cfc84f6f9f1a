package spec

// Encryption says that a volume's data is encrypted on all its copies, and has the key to it, wrapped.
type Encryption struct {
	Cipher string     `json:"cipher"`
	Key    WrappedKey `json:"key"`
}

// CipherXTS is AES-256-XTS; a sector is a block of the volume, its tweak the block's number.
const CipherXTS = "aes-256-xts"

// WrappedKey is a volume's data key, encrypted by a wrapping key that isn't in the metadata. docs/format/wrapped-key.md has its bytes.
type WrappedKey struct {
	// Provider is who has the wrapping key: ProviderFile or ProviderKMS.
	Provider string `json:"provider"`
	// ID is that of the wrapping key, as its provider knows it.
	ID     string `json:"id"`
	Sealed []byte `json:"sealed"`
	// Envelope and Annotations are of ProviderKMS: the key of Sealed, as the KMS has wrapped it, and what the KMS wants to see again.
	Envelope    []byte            `json:"envelope,omitempty"`
	Annotations map[string][]byte `json:"annotations,omitempty"`
}

// The providers of wrapping keys.
const (
	ProviderFile = "file"
	ProviderKMS  = "kms"
)

// Name is how people call the wrapping key: file/2026-11, kms/arn:….
func (w *WrappedKey) Name() string { return w.Provider + "/" + w.ID }
