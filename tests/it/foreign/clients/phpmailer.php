<?php
// PHPMailer; see README.md for the arguments.
use PHPMailer\PHPMailer\Exception;
use PHPMailer\PHPMailer\PHPMailer;
use PHPMailer\PHPMailer\SMTP;

$library = getenv('PHPMAILER') ?: '/usr/share/php/libphp-phpmailer/src';
foreach (['Exception', 'PHPMailer', 'SMTP'] as $class) {
    require "$library/$class.php";
}
[, $host, $port, $way, $cafile, $login, $password, $from, $recipients, $subject, $text] = $argv;
$mail = new PHPMailer(true);
try {
    $mail->isSMTP();
    // Its own error says "Could not authenticate"; the reply is in its debug output.
    $mail->SMTPDebug = SMTP::DEBUG_SERVER;
    $mail->Debugoutput = fn ($line) => fwrite(STDERR, "$line\n");
    $mail->Host = $host;
    $mail->Port = (int) $port;
    $mail->SMTPSecure = $way === 'tls' ? PHPMailer::ENCRYPTION_SMTPS : PHPMailer::ENCRYPTION_STARTTLS;
    $mail->SMTPOptions = ['ssl' => ['cafile' => $cafile]];
    $mail->SMTPAuth = true;
    $mail->Username = $login;
    $mail->Password = $password;
    $mail->CharSet = PHPMailer::CHARSET_UTF8;
    $mail->setFrom($from);
    foreach (explode(',', $recipients) as $recipient) {
        $mail->addAddress($recipient);
    }
    $mail->Subject = $subject;
    $mail->Body = file_get_contents($text);
    if (isset($argv[11])) {
        $mail->addAttachment($argv[11]);
    }
    $mail->send();
} catch (Exception $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
}
