<?php
// A token for a user, or for one channel of a user: php token.php USER [CHANNEL]
// The key is in SECRET: the same text as client.token.hmac_secret_key.

function encode(string $bytes): string
{
    return rtrim(strtr(base64_encode($bytes), '+/', '-_'), '=');
}

function token(array $claims, string $secret): string
{
    $header = encode(json_encode(['alg' => 'HS256', 'typ' => 'JWT']));
    $signed = $header . '.' . encode(json_encode($claims));
    return $signed . '.' . encode(hash_hmac('sha256', $signed, $secret, true));
}

// The user is a text, also where it looks like a number.
$claims = ['sub' => (string) $argv[1], 'exp' => time() + 3600];
if (isset($argv[2])) {
    $claims['channel'] = $argv[2];
}
echo token($claims, getenv('SECRET')), "\n";
