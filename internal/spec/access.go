package spec

import (
	"slices"
	"time"
)

// APIRole is what the holder of an API token may do. Each role may do all that the ones before it may.
type APIRole string

// The roles of API tokens, the least first.
const (
	RoleViewer   APIRole = "viewer"   // see everything but secrets, tokens and the audit log
	RoleOperator APIRole = "operator" // the daily work: volumes, cordons
	RoleAdmin    APIRole = "admin"    // everything that a person may do
)

// APIRoles are all roles of API tokens, the least first.
var APIRoles = []APIRole{RoleViewer, RoleOperator, RoleAdmin}

// Includes reports whether the role may do what other may. A role that doesn't exist may do nothing.
func (r APIRole) Includes(other APIRole) bool {
	have, need := slices.Index(APIRoles, r), slices.Index(APIRoles, other)
	return have >= 0 && need >= 0 && have >= need
}

// ParseAPIRole reads a role. The error is an *InvalidError.
func ParseAPIRole(s string) (APIRole, error) {
	if r := APIRole(s); slices.Contains(APIRoles, r) {
		return r, nil
	}
	return "", &InvalidError{"role", s, "viewer, operator or admin"}
}

// APIToken lets a person or a program call the API with a role. The secret itself is never stored. A
// token that was revoked has no record any more.
type APIToken struct {
	ID         string    `json:"id"`         // 16 hex digits
	Name       string    `json:"name"`       // what it is for, or whose it is; not unique
	SecretHash string    `json:"secretHash"` // SHA-256, hex
	Role       APIRole   `json:"role"`
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
}
