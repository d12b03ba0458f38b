// A token for a user, or for one channel of a user: go run token.go USER [CHANNEL]
// The key is in SECRET: the same text as client.token.hmac_secret_key.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"
)

func part(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func token(claims map[string]any, secret string) string {
	signed := part(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + part(claims)
	signature := hmac.New(sha256.New, []byte(secret))
	signature.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature.Sum(nil))
}

func main() {
	claims := map[string]any{"sub": os.Args[1], "exp": time.Now().Add(time.Hour).Unix()}
	if len(os.Args) > 2 {
		claims["channel"] = os.Args[2]
	}
	fmt.Println(token(claims, os.Getenv("SECRET")))
}
